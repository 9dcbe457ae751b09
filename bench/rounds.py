"""Rounds of a benchmark: all sides take turns in each, and the median over the rounds counts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ["Figures", "keep", "rotated", "summary"]

Figures = dict[str, list[float]]
"""Values of all rounds, by metric."""
T = TypeVar("T")


def rotated(sides: Sequence[T], number: int) -> list[T]:
    """All sides, with another one first in every round: none is always first after a pause."""
    return [sides[(number + i) % len(sides)] for i in range(len(sides))]


def keep(figures: Figures, found: Mapping[str, float], number: int) -> None:
    """Keeps the values of a round; the first round is a warm-up."""
    for name, value in found.items() if number else ():
        figures.setdefault(name, []).append(value)


def summary(values: Sequence[float], digits: int) -> tuple[str, str]:
    """The median and the range as text."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"
