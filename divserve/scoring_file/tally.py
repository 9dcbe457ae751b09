"""What a run has found so far: means, quantiles, and the lines that failed."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["KEPT", "QUANTILES", "Tally"]

KEPT = 1_000_000
"""Values of a score that are kept; of more, a uniform sample of so many gives the quantiles."""
QUANTILES = {"5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95}
NAMED = 20
"""Failed lines that are listed."""


@dataclass(slots=True)
class _Values:
    """The values of a score, in bounded memory (reservoir sampling; Vitter, 1985)."""

    count: int = 0
    null: int = 0
    total: float = 0.0
    kept: array[float] = field(default_factory=lambda: array("d"))
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, value: float | None) -> None:
        if value is None:
            self.null += 1
            return
        self.count += 1
        self.total += value
        if len(self.kept) < KEPT:
            self.kept.append(value)
        elif (place := self.draw.randrange(self.count)) < KEPT:
            self.kept[place] = value

    def summary(self) -> dict[str, Any]:
        known: dict[str, Any] = {"count": self.count, "null": self.null}
        if self.count == 0:
            return known
        found = np.quantile(np.frombuffer(self.kept), list(QUANTILES.values()))
        return {
            **known,
            "mean": self.total / self.count,
            **{name: float(value) for name, value in zip(QUANTILES, found, strict=True)},
            "sampled": self.count > KEPT,
        }


@dataclass(slots=True)
class Tally:
    """Adds up records; none of them is kept."""

    lines: int = 0
    texts: int = 0
    tokens: int = 0
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first failed lines: ``line``, ``id`` and ``error``."""
    values: dict[str, _Values] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts the record of one line."""
        self.lines += 1
        if "error" in record:
            self.failed += 1
            if len(self.failures) < NAMED:
                self.failures.append(dict(record))
            return
        for text in record["data"]:
            self.texts += 1
            self.tokens += text["tokens"]
            for name, value in text["scores"].items():
                self.values.setdefault(name, _Values()).add(value)

    def summary(self, listed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Counts, failures, and for each score mean and quantiles, as plain values.

        Args:
            listed: what the server tells of each score.
        """
        scores = {
            name: {"larger_means": listed.get(name, {}).get("larger_means", ""), **own.summary()}
            for name, own in self.values.items()
        }
        return {
            "lines": self.lines,
            "texts": self.texts,
            "tokens": self.tokens,
            "failed": self.failed,
            "failures": self.failures,
            "scores": scores,
        }
