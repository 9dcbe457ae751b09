"""Figures of open-ended texts: repetition and diversity (Welleck et al., 2020; Su et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["distinct", "diversity", "rep"]


def rep(tokens: Sequence[object], n: int) -> float:
    """Share of n-grams that occurred before: 1 − distinct ÷ all; 0 if there are none."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def diversity(tokens: Sequence[object]) -> float:
    """Product of (1 − rep-n) for n = 2, 3, 4."""
    return math.prod(1 - rep(tokens, n) for n in (2, 3, 4))


def distinct(answers: Sequence[str]) -> float:
    """Share of different texts; 0 if there are none."""
    return len(set(answers)) / len(answers) if answers else 0.0
