"""The tables that a guidance call reads and writes: their columns, and the codes of the forms.

Names of ``PARAMETERS`` are explained in `divserve_kernels` (the formulas) and documented with their
defaults in ``divserve.decoding.program.Row``, the same columns on the other side of the wire.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import IntEnum

__all__ = [
    "ABSENT",
    "LOG_CLIP",
    "MIN_ENTROPY",
    "NEUTRAL",
    "PARAMETERS",
    "STATISTICS",
    "Form",
    "program",
    "side_row",
]  # fmt: skip


class Form(IntEnum):
    """What is computed for a row; a float32 column of the program holds the code."""

    OBSERVE = 0
    """Statistics only; the logits are not touched."""
    LINEAR = 1
    """z* = a·z1 + b·z2 + c·z3."""
    SWITCH = 2
    """Per token one of two log-prob contrasts (COIECD)."""
    PROBABILITY = 3
    """log(a·p1 + b·p2), when the primary is uncertain (USCD)."""


PARAMETERS = (
    "form",
    "alpha",
    "jsd_scale",
    "floor",
    "primary_weight",
    "guide_weight",
    "third_weight",
    "log_ratio",
    "gate",
    "min_prob",
    "log_plausibility",
    "top_p",
    "top_p_temperature",
    "kl_rate",
    "entropy_rate",
    "min_factor",
)
"""One program: 16 numbers, float32."""

NEUTRAL: Mapping[str, float] = {
    **dict.fromkeys(PARAMETERS, 0.0),
    "form": float(Form.LINEAR),
    "floor": -math.inf,
    "primary_weight": 1.0,
    "gate": 1.0,
    "log_plausibility": -math.inf,
    "top_p": 1.0,
    "top_p_temperature": 1.0,
    "min_factor": 1e-4,
}
"""The program that gives back the primary's logits bit for bit."""

STATISTICS = (
    "entropy", "kl", "jsd", "max_prob", "sum_p2", "alpha", "factor", "kept", "overlap", "agree",
)  # fmt: skip
"""One row per guided row, float32, returned; entropy and divergences in nats, ``agree`` 0 or 1."""

ABSENT = -1
"""As a row index: no such stream; as a primary: this row opted out."""

LOG_CLIP = -16.11809565095832
"""ln 1e-7: KL-guided temperature clips both distributions there (Chang et al. 2023, their code)."""

MIN_ENTROPY = 1e-6
"""Entropy-based temperature divides by the entropy, which is 0 for a certain token (nats)."""


def side_row(row: int) -> int:
    """The stream index of row ``row`` of the ``side`` tensor (others index ``logits``)."""
    return -2 - row


def program(**changes: float) -> tuple[float, ...]:
    """A program: `NEUTRAL` with some parameters changed.

    Raises:
        KeyError: a name is not among ``PARAMETERS``.
    """
    if unknown := changes.keys() - NEUTRAL.keys():
        raise KeyError(*unknown)
    return tuple(float(value) for value in {**NEUTRAL, **changes}.values())
