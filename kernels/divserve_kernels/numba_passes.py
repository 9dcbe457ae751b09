"""The loops of the fused CPU back end: each works on one segment of one row, in vector code.

``z1``, ``z2``, ``z3`` are ``[n] float32`` segments of a row's logits, ``low2`` and ``low3`` what
−inf beside a finite z1 counts as, ``line`` the smallest logit kept; all numbers are float32.
Comparisons are written so that NaN passes through them: a broken row shows in its statistics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from divserve_kernels.layout import LOG_CLIP
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import as_bits, as_float, exp, log

__all__ = [
    "blend", "combine", "count_above", "count_both", "count_mixed", "distances", "divergences",
    "extent", "mix", "nucleus", "scale", "solo", "sum_exp", "switch",
]  # fmt: skip

F = np.float32
INFINITY = F(math.inf)
LOG_ZERO = F(-80)
"""Stands for log 0: finite, so that no 0·∞ arises; lower ones have denormal exponentials."""
CLIP_LOG, CLIP = F(LOG_CLIP), F(math.exp(LOG_CLIP))
TINY = F(1.2e-38)
"""About the smallest normal float32: `log` knows no denormal ones."""
SIGN = np.int32(0x7FFFFFFF)
BUCKETS = 2048

# Sums may be reordered for vector code; NaN and infinity keep their meaning.
vector = compiled(fastmath={"reassoc", "contract", "arcp", "nsz"})


@compiled()
def ordered(x: Any) -> Any:
    """An integer that is ordered as the numbers are (LLVM has no vector maximum that keeps NaN)."""
    bits = as_bits(x)
    return bits ^ ((bits >> np.int32(31)) & SIGN)


@compiled()
def unordered(key: Any) -> Any:
    """Inverse of `ordered`."""
    return as_float(key ^ ((key >> np.int32(31)) & SIGN))


@vector
def extent(z: Any) -> Any:
    """(maximum, smallest entry above −inf); (−inf, ∞) where there is none."""
    top, low = ordered(-INFINITY), ordered(INFINITY)
    for i in range(z.size):
        top = max(top, ordered(z[i]))
        low = min(low, ordered(z[i] if z[i] != -INFINITY else INFINITY))
    return unordered(top), unordered(low)


@compiled()
def log_prob(z: Any, lse: Any) -> Any:
    """z − lse, with `LOG_ZERO` for everything below it."""
    x = z - lse
    return LOG_ZERO if x < LOG_ZERO else x


@compiled()
def at_least(x: Any, low: Any) -> Any:
    """max(x, low); NaN stays."""
    return low if x < low else x


@vector
def sum_exp(z: Any, top: Any) -> Any:
    """Σ exp(z − top); 0 where all is −inf."""
    total = F(0)
    if top != -INFINITY:
        for i in range(z.size):
            total += exp(log_prob(z[i], top))
    return total


@vector
def distances(z1: Any, z2: Any, lse1: Any, lse2: Any, low: Any) -> Any:
    """2·JSD and Σ (p1 − p2)⁺ of a segment.

    log(m/p1) is ln((1 + e^d)/2) with d = l2 − l1: both are exactly 0 where the two agree.
    """
    jsd, variation = F(0), F(0)
    for i in range(z1.size):
        l1 = log_prob(z1[i], lse1)
        d = log_prob(at_least(z2[i], low), lse2) - l1
        ratio = exp(d)
        half = log(F(0.5) + F(0.5) * ratio)
        p1 = exp(l1)
        jsd += p1 * (ratio * (d - half) - half)
        variation += p1 * at_least(F(1) - ratio, F(0))
    return jsd, variation


@vector
def divergences(z1: Any, z2: Any, lse1: Any, lse2: Any, low: Any, line: Any) -> Any:
    """Entropy, clipped KL, Σ p1² and the number of kept entries of a segment.

    Apart from `distances` because both at once need more vector registers than there are.
    """
    entropy, kl, squares, kept = F(0), F(0), F(0), np.int32(0)
    for i in range(z1.size):
        l1 = log_prob(z1[i], lse1)
        l2 = log_prob(at_least(z2[i], low), lse2)
        p1 = exp(l1)
        entropy -= p1 * l1
        kl += at_least(p1, CLIP) * (at_least(l1, CLIP_LOG) - at_least(l2, CLIP_LOG))
        squares += p1 * p1
        kept += np.int32(z1[i] >= line)
    return entropy, kl, squares, kept


@vector
def solo(z1: Any, lse1: Any, line: Any) -> Any:
    """Entropy, Σ p1² and the number of kept entries of a segment without a guide."""
    entropy, squares, kept = F(0), F(0), np.int32(0)
    for i in range(z1.size):
        l1 = log_prob(z1[i], lse1)
        p1 = exp(l1)
        entropy -= p1 * l1
        squares += p1 * p1
        kept += np.int32(z1[i] >= line)
    return entropy, squares, kept


@vector
def count_above(z: Any, line: Any) -> Any:
    """Entries above (not at) a line."""
    count = np.int32(0)
    for i in range(z.size):
        count += np.int32(z[i] > line)
    return count


@vector
def count_both(z1: Any, z2: Any, top1: Any, top2: Any) -> Any:
    """Entries that are ``top1`` in one stream and ``top2`` in the other."""
    count = np.int32(0)
    for i in range(z1.size):
        count += np.int32((z1[i] == top1) & (z2[i] == top2))
    return count


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
    """COIECD's two contrasts: context beyond the two lines, memory between them; in place."""
    for i in range(out.size):
        l1, l2 = out[i] - lse1, at_least(z2[i], low2) - lse2
        context = (out[i] > above) | (out[i] < below)
        y = (l1 if context else l2) + weight * (l1 - l2)
        out[i] = -INFINITY if out[i] < line else y * cooling


@compiled()
def mixed(
    z1: Any, z2: Any, lse1: Any, lse2: Any, low: Any,
    a: Any, b: Any, min_p: Any,
) -> Any:  # fmt: skip
    """a·p1 + b·p2, or 0 where p1 is below its floor."""
    p1 = exp(log_prob(z1, lse1))
    q = a * p1 + b * exp(log_prob(at_least(z2, low), lse2))
    return F(0) if p1 < min_p else q


@vector
def count_mixed(
    z1: Any, z2: Any, lse1: Any, lse2: Any, low: Any, a: Any,
    b: Any, min_p: Any, line: Any,
) -> Any:  # fmt: skip
    """Entries that `mix` keeps."""
    count = np.int32(0)
    for i in range(z1.size):
        q = mixed(z1[i], z2[i], lse1, lse2, low, a, b, min_p)
        count += np.int32((z1[i] >= line) & (q > F(0)))
    return count


@vector
def mix(
    out: Any, z2: Any, lse1: Any, lse2: Any, low: Any, a: Any,
    b: Any, min_p: Any, cooling: Any, line: Any,
) -> None:  # fmt: skip
    """log(a·p1 + b·p2), in place; −inf where that is no probability."""
    for i in range(out.size):
        q = mixed(out[i], z2[i], lse1, lse2, low, a, b, min_p)
        y = log(at_least(q, TINY)) * cooling
        out[i] = -INFINITY if (out[i] < line) | (q <= F(0)) else y


@compiled()
def nucleus(z: Any, temperature: Any, top_p: Any) -> Any:
    """Smallest logit of the smallest set of likeliest entries whose mass reaches ``top_p``.

    Radix selection on the ordered bits of the logits, 11 + 11 + 10 of them, by mass: exact, and no
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
