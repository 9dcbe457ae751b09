"""Pass 1 of the fused CPU back end: maximum, Σ exp and smallest finite logit of each stream.

``z1``, ``z2``, ``z3`` are ``[n] float32`` segments of a row's streams. The tables' columns are in
`numba_columns`.
"""

from __future__ import annotations

import math
from typing import Any

from divserve_kernels import numba_columns as col
from divserve_kernels.layout import PARAMETER, SMALLEST, STATISTIC
from divserve_kernels.numba_columns import MISSING
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import INFINITY, F, exp, log_prob, ordered, unordered, vector

__all__ = ["extent", "merge_extents", "observe"]


@compiled()
def observe(found: Any, z1: Any, z2: Any, z3: Any, place: Any) -> None:
    """Pass 1 of one segment: ``found`` ``[FOUND] float64``."""
    found[col.TOP1], found[col.LOW1] = extent(z1)
    found[col.SUM1] = sum_exp(z1, F(found[col.TOP1]))
    if place[col.FROM2] != MISSING:
        found[col.TOP2], found[col.LOW2] = extent(z2)
        found[col.SUM2] = sum_exp(z2, F(found[col.TOP2]))
    if place[col.FROM3] != MISSING:
        _top, found[col.LOW3] = extent(z3)


@vector
def extent(z: Any) -> Any:
    """(maximum, smallest entry above −inf); (−inf, ∞) where there is none."""
    top, low = ordered(-INFINITY), ordered(INFINITY)
    for i in range(z.size):
        top = max(top, ordered(z[i]))
        low = min(low, ordered(z[i] if z[i] != -INFINITY else INFINITY))
    return unordered(top), unordered(low)


@vector
def sum_exp(z: Any, top: Any) -> Any:
    """Σ exp(z − top); 0 where all is −inf."""
    total = F(0)
    if top != -INFINITY:
        for i in range(z.size):
            total += exp(log_prob(z[i], top))
    return total


@compiled()
def merge_extents(found: Any, derived: Any, place: Any, program: Any, statistics: Any) -> None:
    """What pass 2 needs to know of a row: ``derived`` ``[DERIVED] float32``."""
    top, derived[col.LSE1] = total(found, col.TOP1, col.SUM1)
    derived[col.PEAK1] = derived[col.PEAK2] = top
    statistics[STATISTIC.max_prob] = 0.0 if top == -math.inf else math.exp(top - derived[col.LSE1])
    derived[col.HIDDEN2] = -math.inf
    derived[col.CLAMP2] = found[:, col.LOW1].min()
    if place[col.FROM2] != MISSING:
        derived[col.CLAMP2] = found[:, col.LOW2].min()
        derived[col.PEAK2], derived[col.LSE2] = total(found, col.TOP2, col.SUM2)
        if derived[col.PEAK2] == -math.inf:
            # A guide that is masked everywhere counts as uniform.
            derived[col.HIDDEN2] = derived[col.CLAMP2] = 0
            derived[col.LSE2] = math.log(max(place[col.VOCAB], 1))
    derived[col.CLAMP3] = found[:, col.LOW3].min()
    if derived[col.CLAMP3] == math.inf:
        derived[col.CLAMP3] = 0
    line = F(top) + program[PARAMETER.log_plausibility]
    derived[col.LINE] = line if line > F(SMALLEST) else F(SMALLEST)
    derived[col.ABOVE] = F(top) - program[PARAMETER.log_ratio]
    derived[col.BELOW] = F(found[:, col.LOW1].min()) + program[PARAMETER.log_ratio]
    derived[col.MIN_P] = program[PARAMETER.min_prob] / max(place[col.VOCAB], 1)


@compiled()
def total(found: Any, top: int, sums: int) -> tuple[float, float]:
    """(maximum, log-sum-exp) of a row from those of its segments; (−inf, −inf) if all is masked."""
    highest, whole = -math.inf, 0.0
    for s in range(found.shape[0]):
        highest = found[s, top] if not found[s, top] <= highest else highest
    if highest == -math.inf:
        return highest, highest
    for s in range(found.shape[0]):
        if found[s, top] != -math.inf:
            whole += found[s, sums] * math.exp(found[s, top] - highest)
    return highest, highest + math.log(whole)
