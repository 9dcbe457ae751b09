"""The costly fields of a body: how much they may ask for, and how many rows they take.

The body of any route can be checked this way, before validation and without knowing the route.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from divserve.errors import InvalidRequest

__all__ = [
    "TEXTS", "FieldLimits", "check_fields", "check_rows", "prompts_in", "rows_of_fields",
    "too_much",
]  # fmt: skip

CHOICES = ("n", "best_of")
STOPS = ("stop", "stop_sequences")
TEXTS = ("prompt", "prompt_embeds")
PROMPTS = (*TEXTS, "messages", "items")
"""Fields that may hold many prompts on one of vLLM's routes."""
INTEGER = TypeAdapter(int)


@dataclass(frozen=True)
class FieldLimits:
    """The most that one request may ask for, as set by the flags of the same names."""

    max_n: int = 128
    max_stop_strings: int = 16
    max_stop_length: int = 1024
    """In characters."""
    max_batch_prompts: int = 512
    max_trace_tokens: int = 16_384
    """Tokens of all choices of an answer with a trace."""
    max_trace_candidates: int = 131_072
    """Likeliest tokens of all streams at all of these tokens."""
    max_rows_per_request: int = 1024
    """As many as the largest batch of prompts takes with a guide each."""
    max_messages: int = 1024
    """A context of 131,072 tokens leaves 128 for each."""
    max_parts: int = 4096
    """Elements of all lists inside messages: content parts, tool calls."""
    max_tools: int = 256
    """Twice as many as OpenAI accepts."""
    max_json_values: int = 131_072
    """Values of a body, token ids left out."""


def check_fields(get: Callable[[str], Any], limits: FieldLimits) -> None:
    """Raises `InvalidRequest` for fields beyond their limits, on any route.

    Args:
        get: returns the value of a field, or None; of any type, as it is not validated yet.
        limits: the maximum of each.
    """
    for field in CHOICES:
        number = _integer(get(field))
        if number is None:
            continue
        if number > limits.max_n:
            raise too_much(field, f"is {_short(number)}", limits.max_n, "--max-n")
        if number < 1:
            raise InvalidRequest(
                f"{field} is {_short(number)}; it must be at least 1.", param=field
            )
    for field in STOPS:
        stops = get(field)
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list):
            continue
        if len(stops) > limits.max_stop_strings:
            told = f"has {len(stops)} strings"
            raise too_much(field, told, limits.max_stop_strings, "--max-stop-strings")
        longest = max((len(stop) for stop in stops if isinstance(stop, str)), default=0)
        if longest > limits.max_stop_length:
            told = f"has a string of {longest} characters"
            raise too_much(field, told, limits.max_stop_length, "--max-stop-length")
    for field in PROMPTS:
        if (prompts := prompts_in(get(field))) > limits.max_batch_prompts:
            told = f"has {prompts} prompts"
            raise too_much(field, told, limits.max_batch_prompts, "--max-batch-prompts")


def rows_of_fields(body: Mapping[str, Any]) -> int:
    """Rows that a body of one of vLLM's own routes takes, as far as its fields show.

    Args:
        body: one that passed `check_fields`, with or without its own ``sampling_params``.
    """
    nested = body.get("sampling_params")
    choices = [body.get("n"), nested.get("n") if isinstance(nested, dict) else None]
    numbers = [number for n in choices if (number := _integer(n)) is not None]
    return max(numbers, default=1) * max(1, sum(prompts_in(body.get(field)) for field in PROMPTS))


def check_rows(rows: int, get: Callable[[str], Any], limits: FieldLimits) -> None:
    """Raises `InvalidRequest` for a request that takes too many rows of the engine's batch.

    Args:
        rows: how many it takes.
        get: returns the value of a field of its body, as in `check_fields`.
        limits: the maximum.
    """
    if rows <= (most := limits.max_rows_per_request):
        return
    many = (field for field in PROMPTS if prompts_in(get(field)) > 1)
    param = "n" if (_integer(get("n")) or 1) > 1 else next(many, None)
    raise InvalidRequest(
        f"The request takes {rows} rows, one for each prompt, choice and guide; the most is "
        f"{most}. Send several requests, or start the server with a larger --max-rows-per-request.",
        param=param,
    )


def prompts_in(value: Any) -> int:
    """How many prompts a value holds: a list of numbers or of messages is one prompt."""
    many = isinstance(value, list) and bool(value) and isinstance(value[0], str | bytes | list)
    return len(value) if many else int(value is not None)


def _integer(value: Any) -> int | None:
    """The integer that vLLM will read from a value such as ``"4"`` or ``4.0``; None if none."""
    if value is None:
        return None
    try:
        return INTEGER.validate_python(value)
    except ValidationError:
        return None


def too_much(field: str, told: str, most: int, flag: str) -> InvalidRequest:
    """The error for a field beyond its limit, which names the flag that raises it."""
    return InvalidRequest(
        f"{field} {told}; the most is {most}. Send less, or start the server with a larger {flag}.",
        param=field,
    )


def _short(number: int) -> str:
    """A number that a client chose, shortened (Python refuses to print very large ones)."""
    return str(number) if number.bit_length() < 64 else "a huge number"
