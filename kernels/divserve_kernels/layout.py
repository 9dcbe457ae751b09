"""What all back ends share: where numbers lie in the tables, stream indices, and limits.

The numbers themselves, their defaults and the forms are those of ``divserve_contract``.
"""

from __future__ import annotations

import math

from divserve_contract import PARAMETERS, STATISTICS, Program, Statistics

__all__ = [
    "ABSENT", "CLIP", "FIRST_SIDE", "LOG_CLIP", "LOG_ZERO", "MIN_ENTROPY", "PARAMETER", "SMALLEST",
    "STATISTIC", "TINY", "side_row",
]  # fmt: skip

PARAMETER = Program(*range(len(PARAMETERS)))
"""Where each number of a program is: ``program[PARAMETER.alpha]``; ints."""

STATISTIC = Statistics(*range(len(STATISTICS)))
"""Where each statistic is: ``statistics[STATISTIC.kl]``; ints."""

ABSENT = -1
"""As a stream index: no such stream; as a primary: this row opted out."""

FIRST_SIDE = -2
"""The stream index of row 0 of the ``side`` tensor; the others follow downwards."""

CLIP = 1e-7
"""KL-guided temperature clips both distributions there (Chang et al. 2023, their code)."""
LOG_CLIP = math.log(CLIP)

MIN_ENTROPY = 1e-6
"""Entropy-based temperature divides by the entropy, which is 0 for a certain token (nats)."""

LOG_ZERO = -80.0
"""Stands for ln 0: finite, so that no 0·∞ arises; lower ones have denormal, slow exponentials."""

TINY = 1.2e-38
"""About the smallest normal float32: the fast logarithms know no denormal ones."""

SMALLEST = -3.4028234663852886e38
"""The smallest finite float32."""


def side_row(row: int) -> int:
    """The stream index of row ``row`` of the ``side`` tensor (others index ``logits``)."""
    return FIRST_SIDE - row
