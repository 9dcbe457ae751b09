"""What a greedy answer's trace tells about each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["TRACE", "divergences", "swapped"]

TRACE = {"top": 1, "at": "final"}
"""The request's field: statistics and the likeliest token of each stream, at the end."""

Entries = Sequence[Mapping[str, Any]]


def divergences(trace: Entries) -> list[float]:
    """KL(primary‖guide) of each token that reports one, nats."""
    return [round(entry["kl"], 4) for entry in trace if entry.get("kl") is not None]


def swapped(trace: Entries) -> int:
    """How many tokens are not the primary's likeliest after the same text.

    Args:
        trace: its texts are ids (``return_tokens_as_token_ids``).
    """
    return sum(entry["token"] != entry["top"]["primary"][0]["token"] for entry in trace)
