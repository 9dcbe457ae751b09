"""The smallest logit of a row's nucleus, without sorting, for the fused CPU back end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from divserve_kernels import numba_columns as col
from divserve_kernels.layout import PARAMETER
from divserve_kernels.numba_extents import extent
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import F, exp, log_prob, ordered, unordered

__all__ = ["keep_nucleus"]

BUCKETS = 2048


@compiled()
def keep_nucleus(derived: Any, place: Any, program: Any, logits: Any) -> None:
    """Raises the line of a row that keeps a nucleus."""
    if program[PARAMETER.top_p] < 1 and place[col.VOCAB] > 0 and derived[col.LSE1] > -math.inf:
        row = logits[place[col.AT1] : place[col.AT1] + place[col.VOCAB]]
        line = nucleus(row, program[PARAMETER.top_p_temperature], program[PARAMETER.top_p])
        derived[col.LINE] = max(derived[col.LINE], line)


@compiled()
def nucleus(z: Any, temperature: Any, top_p: Any) -> Any:
    """Smallest logit of the smallest set of most likely entries whose mass reaches ``top_p``.

    Radix selection by mass on the ordered bits of the logits, 11 + 11 + 10 of them: exact, without
    sorting. Equal logits are kept or dropped together. ``z`` is ``[V] float32``.
    """
    inverse = F(1) / temperature
    top, _low = extent(z)
    target, above, prefix = np.float64(0), np.float64(0), np.int64(0)
    for level in range(3):
        shift = (21, 10, 0)[level]
        width = (11, 11, 10)[level]
        masses = np.zeros(BUCKETS)
        for i in range(z.size):
            key = np.int64(ordered(z[i])) + 2147483648
            if level == 0 or key >> (shift + width) == prefix:
                masses[(key >> shift) & ((1 << width) - 1)] += exp(
                    log_prob(z[i] * inverse, top * inverse)
                )
        if level == 0:
            target = top_p * masses.sum()
        bucket = (1 << width) - 1
        # No entry weighs nothing, so a bucket without mass is empty.
        while bucket > 0 and (masses[bucket] == 0 or above + masses[bucket] < target):
            above += masses[bucket]
            bucket -= 1
        prefix = (prefix << width) | bucket
    return unordered(np.int32(prefix - 2147483648))
