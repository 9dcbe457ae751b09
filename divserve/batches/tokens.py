"""How many tokens the answers of a batch took: the sums of what each says in its ``usage``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from openai.types.batch_usage import BatchUsage, InputTokensDetails, OutputTokensDetails

__all__ = ["tokens_in", "usage_of"]

Path = tuple[str, ...]

FIELDS: Mapping[str, tuple[Path, ...]] = {
    "input": (("prompt_tokens",), ("input_tokens",)),
    "output": (("completion_tokens",), ("output_tokens",)),
    "cached": (
        ("prompt_tokens_details", "cached_tokens"),
        ("input_tokens_details", "cached_tokens"),
        ("cache_read_input_tokens",),
    ),
    "reasoning": (
        ("completion_tokens_details", "reasoning_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
    ),
}
"""Where the routes put a number; the first of the paths that a ``usage`` has is read."""

BESIDE = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Input that Anthropic's ``input_tokens`` leaves out."""


def tokens_in(record: Any) -> Counter[str]:
    """The numbers of one line of the results, by the names of `FIELDS`.

    Args:
        record: the line as JSON; anything but an answer with a ``usage`` counts nothing.
    """
    usage = _at(record, ("response", "body", "usage"))
    found: Counter[str] = Counter()
    for name, paths in FIELDS.items():
        numbers = (_at(usage, path) for path in paths)
        found[name] = next((n for n in numbers if isinstance(n, int)), 0)
    for name in BESIDE:
        found["input"] += _at(usage, (name,)) or 0
    return found


def usage_of(sums: Counter[str]) -> BatchUsage:
    """The sums as OpenAI's field ``usage`` of a batch."""
    return BatchUsage(
        input_tokens=sums["input"],
        input_tokens_details=InputTokensDetails(cached_tokens=sums["cached"]),
        output_tokens=sums["output"],
        output_tokens_details=OutputTokensDetails(reasoning_tokens=sums["reasoning"]),
        total_tokens=sums["input"] + sums["output"],
    )


def _at(value: Any, path: Path) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
