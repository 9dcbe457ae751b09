"""What a method hands to the engine: one row of numbers for the kernel and the guide's token ids.

Every two-stream method is one line of arithmetic on raw logits (algorithms.md §0.1)

    w   = max(alpha + jsd_scale · JSD(p1, p2), floor)
    z*  = ((1 + w) · z1 − w · z2) / max(2^(−kl_rate · KL(p1‖p2)), min_factor)

so a method is fully described by the five numbers of a `Row`, and rows of different methods go
through the same call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["STATISTICS", "Row", "Spec"]

STATISTICS = ("entropy", "kl", "jsd", "alpha", "factor")
"""Columns of the statistics row that the engine returns for every guided token (nats)."""


class Row(NamedTuple):
    """Parameters of one guided row; the defaults leave the primary's logits as they are."""

    alpha: float = 0.0
    """Constant part of the contrast weight w."""
    jsd_scale: float = 0.0
    """Weight added per nat of JSD(p1, p2)."""
    floor: float = -math.inf
    """Smallest contrast weight."""
    kl_rate: float = 0.0
    """Halvings of the temperature per nat of KL(p1‖p2)."""
    min_factor: float = 1e-4
    """Smallest temperature factor."""


@dataclass(frozen=True, slots=True)
class Spec:
    """The order that travels with one request to the engine (plain types: it serialises)."""

    row: Row
    guide: list[int]
    """Prompt token ids of the guide stream; never empty."""

    def to_wire(self) -> dict[str, Any]:
        """Returns a dict of plain lists for ``SamplingParams.extra_args``."""
        return {"row": list(self.row), "guide": self.guide}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Spec:
        """Inverse of `to_wire`."""
        row: Sequence[float] = wire["row"]
        return cls(row=Row(*row), guide=list(wire["guide"]))
