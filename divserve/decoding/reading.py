"""Scores of a given text: what is asked of the engine, and what it returns of every position."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Read", "Reading"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The end of the prompt, and of every guide, is a text whose tokens are scored.

    The request then samples one token, which nobody sees: its step shows that all rows were read.
    """

    tokens: int
    """Number of scored tokens: the last ones of the prompt and of each guide, the same in all."""
    top: int = 0
    """How many of the likeliest tokens are returned for each position."""
    ids: list[list[int]] = field(default_factory=list)
    """Tokens whose log-probs are returned, for each scored token; empty: none for any."""
    guided: bool = False
    """Whether the program is applied to every position; else the distributions are the raw ones."""
    reference: bool = False
    """Whether the first amateur's distributions are compared with the model's."""


@dataclass(frozen=True, slots=True)
class Read:
    """The figures of one text, as bytes in C order and the machine's byte order; N: its tokens."""

    figures: bytes
    """``[N, len(FIGURES)] float32``."""
    top_ids: bytes = b""
    """``[N, top] int32``."""
    top_logprobs: bytes = b""
    """``[N, top] float32``."""
    id_logprobs: bytes = b""
    """``[N, longest list of ids] float32``; what is behind the end of a list means nothing."""
