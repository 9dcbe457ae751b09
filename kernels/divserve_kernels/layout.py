"""What all back ends share: the places of numbers in the tables, stream indices, and limits.

The numbers themselves, their defaults and the forms are defined in ``divserve_contract``.
"""

from __future__ import annotations

import math

from divserve_contract import PARAMETERS, STATISTICS, Program, Statistics

__all__ = [
    "ABSENT", "CLIP", "FIRST_SIDE", "LOG_CLIP", "LOG_ZERO", "MIN_ENTROPY", "PARAMETER", "SMALLEST",
    "STATISTIC", "TINY", "side_row",
]  # fmt: skip

PARAMETER = Program(*range(len(PARAMETERS)))
"""Index of each number of a program: ``program[PARAMETER.alpha]``; ints."""

STATISTIC = Statistics(*range(len(STATISTICS)))
"""Index of each statistic: ``statistics[STATISTIC.kl]``; ints."""

ABSENT = -1
"""As a stream index: there is no such stream; as a primary: the row is left out."""

FIRST_SIDE = -2
"""The stream index of row 0 of the ``side`` tensor; the indices of other rows count down."""

CLIP = 1e-7
"""KL-guided temperature clips both distributions at this value (Chang et al. 2023, their code)."""
LOG_CLIP = math.log(CLIP)

MIN_ENTROPY = 1e-6
"""Smallest divisor of entropy-based temperature (nats): one token with all mass has entropy 0."""

LOG_ZERO = -80.0
"""Stands for ln 0: finite, to avoid 0·∞; lower values have denormal, slow exponentials."""

TINY = 1.2e-38
"""About the smallest normal float32: the fast logarithms do not handle denormal ones."""

SMALLEST = -3.4028234663852886e38
"""The smallest finite float32."""


def side_row(row: int) -> int:
    """The stream index of row ``row`` of the ``side`` tensor (others index ``logits``)."""
    return FIRST_SIDE - row
