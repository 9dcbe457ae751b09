"""Scores of a given text: what is asked of the engine, and what it returns of every position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["EXCLUDED", "FIGURES", "Figures", "Read", "Reading"]

EXCLUDED = -1e4
"""The log-prob of a token that the method gives no probability."""


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


class Figures(NamedTuple):
    """What is returned for one scored token, in nats; NaN where a stream is missing.

    p is the distribution at the token's position: that of the program if it is applied, else the
    model's own. q is the guide's, r the first amateur's; comparisons are of raw distributions.
    """

    logprob: float
    """log p(token)."""
    rank: float
    """1 + the number of tokens that are likelier under p."""
    entropy: float
    """H(p)."""
    varentropy: float
    """The variance of log p under p."""
    own_logprob: float
    """log-prob of the token under the model's raw distribution."""
    guide_logprob: float
    """log q(token)."""
    kl: float
    """KL(model‖guide)."""
    jsd: float
    """JSD(model, guide)."""
    reference_logprob: float
    """log r(token)."""
    cross_entropy: float
    """−Σ r log(model)."""
    cross_variance: float
    """The variance of log(model) under r."""


FIGURES = Figures._fields
"""Names of the figures, in the order of the columns."""


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
