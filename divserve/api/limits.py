"""How much one request may ask; each refusal says what to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from divserve.api.requests import Guided
from divserve.edges.flags import EdgeSettings
from divserve.errors import InvalidRequest

__all__ = ["check_fields", "check_request", "rows_of", "rows_of_fields"]

CHOICES = ("n", "best_of")
STOPS = ("stop", "stop_sequences")
TEXTS = ("prompt", "prompt_embeds")
PROMPTS = (*TEXTS, "messages", "items")
"""Fields that may hold many prompts on one of vLLM's routes."""
INTEGER = TypeAdapter(int)


def check_fields(get: Callable[[str], Any], settings: EdgeSettings) -> None:
    """Raises `InvalidRequest` for fields beyond their limits, on whatever route.

    Args:
        get: the value of a field, or None; of any type, for nobody has validated it.
        settings: the limits.
    """
    for field in CHOICES:
        number = _integer(get(field))
        if number is None:
            continue
        if number > settings.max_n:
            raise _too_much(field, f"is {_short(number)}", settings.max_n, "--max-n")
        if number < 1:
            raise InvalidRequest(
                f"{field} is {_short(number)}; it must be at least 1.", param=field
            )
    for field in STOPS:
        stops = get(field)
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(stops, list):
            continue
        if len(stops) > settings.max_stop_strings:
            told = f"has {len(stops)} strings"
            raise _too_much(field, told, settings.max_stop_strings, "--max-stop-strings")
        longest = max((len(stop) for stop in stops if isinstance(stop, str)), default=0)
        if longest > settings.max_stop_length:
            told = f"has a string of {longest} characters"
            raise _too_much(field, told, settings.max_stop_length, "--max-stop-length")
    for field in PROMPTS:
        if (prompts := _prompts(get(field))) > settings.max_batch_prompts:
            told = f"has {prompts} prompts"
            raise _too_much(field, told, settings.max_batch_prompts, "--max-batch-prompts")


def check_request(request: Guided, settings: EdgeSettings, context: int) -> None:
    """Raises `InvalidRequest` for a body of a guided route beyond its limits.

    Args:
        request: the body.
        settings: the limits.
        context: tokens of the model's context, which is how long an answer may get that names no
            ``max_tokens``.
    """
    check_fields(lambda field: getattr(request, field, None), settings)
    traced = next((method for method in request.methods if method.trace), None)
    if traced is None:
        return
    fields = ("max_completion_tokens", "max_tokens")
    longest = next((n for f in fields if (n := getattr(request, f, None)) is not None), context)
    if longest > settings.max_trace_tokens:
        raise InvalidRequest(
            f"A trace of up to {longest} tokens is too long: set max_tokens to at most "
            f"{settings.max_trace_tokens}, leave the trace out, or start the server with a larger "
            "--max-trace-tokens.",
            param=f"{request.param_of(traced)}.trace",
        )


def rows_of(request: Guided) -> int:
    """Rows of the engine's batch that a request takes: each choice and each of its guides."""
    guides: list[Any] = []
    for method in request.methods:
        if method.guided and method.guide not in guides:
            guides.append(method.guide)
    prompts = max(sum(_prompts(getattr(request, field, None)) for field in TEXTS), 1)
    return (getattr(request, "n", None) or 1) * prompts * (1 + len(guides))


def rows_of_fields(body: Mapping[str, Any]) -> int:
    """Rows that a body of one of vLLM's own routes takes, as far as its fields tell.

    Args:
        body: what `check_fields` has let pass, with ``sampling_params`` of its own or without.
    """
    nested = body.get("sampling_params")
    choices = [body.get("n"), nested.get("n") if isinstance(nested, dict) else None]
    numbers = [number for n in choices if (number := _integer(n)) is not None]
    return max(numbers, default=1) * max(1, sum(_prompts(body.get(field)) for field in PROMPTS))


def _integer(value: Any) -> int | None:
    """The number that vLLM's fields will make of a value, be it ``"4"`` or ``4.0``, if any."""
    if value is None:
        return None
    try:
        return INTEGER.validate_python(value)
    except ValidationError:
        return None


def _prompts(value: Any) -> int:
    """How many prompts a value holds: a list of numbers or of messages is one."""
    many = isinstance(value, list) and bool(value) and isinstance(value[0], str | bytes | list)
    return len(value) if many else int(value is not None)


def _too_much(field: str, told: str, most: int, flag: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} {told}; the most is {most}. Send less, or start the server with a larger {flag}.",
        param=field,
    )


def _short(number: int) -> str:
    """A number that a client chose, of any size (Python refuses to print the largest)."""
    return str(number) if number.bit_length() < 64 else "a huge number"
