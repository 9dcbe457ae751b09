"""Pass 3 of the fused CPU back end: combine, mask, scale, write.

``out`` is a ``[n] float32`` segment that holds z1 and is overwritten, ``z2``, ``z3`` are those of
the other streams, ``low2``, ``low3`` replace −inf in them, and ``line`` is the smallest logit kept.
"""

from __future__ import annotations

from typing import Any

from divserve_kernels import numba_columns as col
from divserve_kernels.numba_columns import BLEND, CHOOSE, COMBINE, SCALE
from divserve_kernels.numba_divergences import mixed
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import INFINITY, TINY, F, at_least, log, vector

__all__ = ["write"]


@compiled()
def write(out: Any, z2: Any, z3: Any, place: Any, derived: Any) -> None:
    """Pass 3 of one segment; ``out`` ``[n] float32`` holds z1 and is overwritten."""
    a, b, c = derived[col.A], derived[col.B], derived[col.C]
    cooling, line = derived[col.COOLING], derived[col.LINE]
    lse1, lse2, clamp = derived[col.LSE1], derived[col.LSE2], derived[col.CLAMP2]
    mode = place[col.MODE]
    if mode == SCALE:
        scale(out, a, cooling, line)
    elif mode == COMBINE:
        combine(out, z2, a, b, clamp, cooling, line)
    elif mode == BLEND:
        blend(out, z2, z3, a, b, c, clamp, derived[col.CLAMP3], cooling, line)
    elif mode == CHOOSE:
        above, below = derived[col.ABOVE], derived[col.BELOW]
        switch(out, z2, lse1, lse2, clamp, b, above, below, cooling, line)
    else:
        mix(out, z2, lse1, lse2, derived[col.HIDDEN2], a, b, derived[col.MIN_P], cooling, line)


@vector
def scale(out: Any, a: Any, cooling: Any, line: Any) -> None:
    """a·z1, in place."""
    for i in range(out.size):
        out[i] = -INFINITY if out[i] < line else a * out[i] * cooling


@vector
def combine(
    out: Any, z2: Any, a: Any, b: Any, low2: Any, cooling: Any,
    line: Any,
) -> None:  # fmt: skip
    """a·z1 + b·z2, in place."""
    for i in range(out.size):
        y = (a * out[i] + b * at_least(z2[i], low2)) * cooling
        out[i] = -INFINITY if out[i] < line else y


@vector
def blend(
    out: Any, z2: Any, z3: Any, a: Any, b: Any, c: Any, low2: Any,
    low3: Any, cooling: Any, line: Any,
) -> None:  # fmt: skip
    """a·z1 + b·z2 + c·z3, in place."""
    for i in range(out.size):
        y = a * out[i] + b * at_least(z2[i], low2) + c * at_least(z3[i], low3)
        out[i] = -INFINITY if out[i] < line else y * cooling


@vector
def switch(
    out: Any, z2: Any, lse1: Any, lse2: Any, low2: Any, weight: Any,
    above: Any, below: Any, cooling: Any, line: Any,
) -> None:  # fmt: skip
    """COIECD's two contrasts, in place: the context's beyond the lines, the memory's between."""
    for i in range(out.size):
        l1, l2 = out[i] - lse1, at_least(z2[i], low2) - lse2
        context = (out[i] > above) | (out[i] < below)
        y = (l1 if context else l2) + weight * (l1 - l2)
        out[i] = -INFINITY if out[i] < line else y * cooling


@vector
def mix(
    out: Any, z2: Any, lse1: Any, lse2: Any, low: Any, a: Any,
    b: Any, min_p: Any, cooling: Any, line: Any,
) -> None:  # fmt: skip
    """log(a·p1 + b·p2), in place; −inf where the sum is not a probability."""
    for i in range(out.size):
        q = mixed(out[i], z2[i], lse1, lse2, low, a, b, min_p)
        y = log(at_least(q, TINY)) * cooling
        out[i] = -INFINITY if (out[i] < line) | (q <= F(0)) else y
