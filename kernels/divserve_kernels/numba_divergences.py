"""Pass 2 of the fused CPU back end: divergences and counts, and what follows from them for a row.

``z1``, ``z2`` are ``[n] float32`` segments of a row's streams, ``low`` the value that replaces −inf
in z2 beside a finite z1, ``line`` the smallest logit kept, all float32. The tables' columns are in
`numba_columns`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from divserve_contract import Form
from divserve_kernels import layout
from divserve_kernels import numba_columns as col
from divserve_kernels.layout import MIN_ENTROPY, PARAMETER, STATISTIC
from divserve_kernels.numba_columns import BLEND, CHOOSE, COMBINE, KEEP, MISSING, MIX, SCALE
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import F, at_least, exp, log, log_prob, vector

__all__ = ["compare", "merge_divergences", "mixed"]

LINEAR, SWITCH, PROBABILITY = int(Form.LINEAR), int(Form.SWITCH), int(Form.PROBABILITY)
CLIP_LOG, CLIP = F(layout.LOG_CLIP), F(layout.CLIP)


@compiled()
def compare(found: Any, z1: Any, z2: Any, place: Any, derived: Any, program: Any) -> None:
    """Pass 2 of one segment; overwrites ``found`` ``[FOUND] float64``."""
    peaks = found[col.TOP1] == derived[col.PEAK1] and found[col.TOP2] == derived[col.PEAK2]
    found[:] = 0
    if derived[col.LSE1] == -math.inf:
        return
    lse1, lse2 = derived[col.LSE1], derived[col.LSE2]
    hidden, line = derived[col.HIDDEN2], derived[col.LINE]
    if place[col.FROM2] == MISSING:
        found[col.ENTROPY], found[col.SQUARES], found[col.KEPT] = solo(z1, lse1, line)
        # 0, or NaN in a broken row.
        found[col.VARIATION], found[col.BOTH] = lse1 - lse1, 1
        lse2 = lse1
    else:
        found[col.JSD], found[col.VARIATION] = distances(z1, z2, lse1, lse2, hidden)
        found[col.ENTROPY], found[col.KL], found[col.SQUARES], found[col.KEPT] = divergences(
            z1, z2, lse1, lse2, hidden, line
        )
        # A token can only be the most likely in both streams where both have their maximum.
        if peaks:
            found[col.BOTH] = count_both(z1, z2, derived[col.PEAK1], derived[col.PEAK2])
    if program[PARAMETER.form] == SWITCH:
        found[col.SPECIAL] = count_above(z1, derived[col.ABOVE])
    elif program[PARAMETER.form] == PROBABILITY:
        a, b = probability_weights(program)
        found[col.SPECIAL] = count_mixed(z1, z2, lse1, lse2, hidden, a, b, derived[col.MIN_P], line)


@vector
def distances(z1: Any, z2: Any, lse1: Any, lse2: Any, low: Any) -> Any:
    """2·JSD and Σ (p1 − p2)⁺ of a segment.

    log(m/p1) is ln((1 + e^d)/2) with d = l2 − l1: both results are exactly 0 if p1 = p2.
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

    Separate from `distances`, because both together need more vector registers than there are.
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


@compiled()
def mixed(
    z1: Any, z2: Any, lse1: Any, lse2: Any, low: Any,
    a: Any, b: Any, min_p: Any,
) -> Any:  # fmt: skip
    """a·p1 + b·p2, or 0 where p1 is below its floor."""
    p1 = exp(log_prob(z1, lse1))
    q = a * p1 + b * exp(log_prob(at_least(z2, low), lse2))
    return F(0) if p1 < min_p else q


@compiled()
def probability_weights(program: Any) -> tuple[np.float32, np.float32]:
    """The weights of `Form.PROBABILITY`, which depend on no statistic."""
    weight = max(program[PARAMETER.alpha], program[PARAMETER.floor])
    return program[PARAMETER.primary_weight] + weight, program[PARAMETER.guide_weight] - weight


@compiled()
def merge_divergences(found: Any, derived: Any, place: Any, program: Any, statistics: Any) -> None:
    """A row's statistics ``[len(STATISTICS)] float32``, and what pass 3 has to do."""
    place[col.MODE] = KEEP
    if place[col.VOCAB] == 0:
        return
    entropy, kl = positive(found[:, col.ENTROPY].sum()), positive(found[:, col.KL].sum())
    jsd, squares = positive(found[:, col.JSD].sum() / 2), found[:, col.SQUARES].sum()
    kept, special = found[:, col.KEPT].sum(), found[:, col.SPECIAL].sum()
    halvings = program[PARAMETER.kl_rate] * kl
    halvings += program[PARAMETER.entropy_rate] / max(entropy, MIN_ENTROPY)
    factor = highest(2.0**-halvings, program[PARAMETER.min_factor])
    weight = program[PARAMETER.alpha] + program[PARAMETER.jsd_scale] * jsd
    weight = highest(weight, program[PARAMETER.floor])
    derived[col.A] = program[PARAMETER.primary_weight] + weight
    derived[col.B] = program[PARAMETER.guide_weight] - weight
    derived[col.C] = program[PARAMETER.third_weight]
    derived[col.COOLING] = 1 / factor
    used = -derived[col.B]

    if place[col.FROM2] == MISSING:
        derived[col.A], derived[col.LSE2] = derived[col.A] + derived[col.B], derived[col.LSE1]
    if program[PARAMETER.form] == SWITCH:
        place[col.MODE] = CHOOSE
        derived[col.B] = weight
        used = weight if special > 1 else weight - 1
        derived[col.ABOVE] = derived[col.ABOVE] if special > 1 else math.inf
    elif program[PARAMETER.form] == PROBABILITY:
        contrast = squares <= program[PARAMETER.gate] and special > 0
        place[col.MODE] = MIX if contrast else SCALE
        used, kept = (used, special) if contrast else (0.0, kept)
        derived[col.A] = probability_weights(program)[0] if contrast else 1
    elif program[PARAMETER.form] == LINEAR:
        place[col.MODE] = BLEND if place[col.FROM3] != MISSING and derived[col.C] != 0 else COMBINE
        if place[col.MODE] == COMBINE and place[col.FROM2] == MISSING:
            place[col.MODE] = SCALE
    overlap, agree = nearness(found, derived[col.LSE1])
    statistics[STATISTIC.entropy], statistics[STATISTIC.kl] = entropy, kl
    statistics[STATISTIC.jsd], statistics[STATISTIC.sum_p2] = jsd, squares
    statistics[STATISTIC.alpha], statistics[STATISTIC.factor] = used, factor
    statistics[STATISTIC.kept] = kept
    statistics[STATISTIC.overlap], statistics[STATISTIC.agree] = overlap, agree


@compiled()
def nearness(found: Any, lse1: Any) -> tuple[float, float]:
    """Overlap of a row's two distributions, and whether a token is the most likely in both."""
    if lse1 == -math.inf:
        return 0.0, 0.0
    overlap = positive(1 - found[:, col.VARIATION].sum())
    agree = 1.0 if found[:, col.BOTH].sum() > 0 else 0.0
    return overlap, agree if overlap == overlap else overlap


@compiled()
def positive(x: float) -> float:
    """Removes rounding errors below zero; NaN stays."""
    return 0.0 if x < 0 else x


@compiled()
def highest(x: float, low: float) -> float:
    """max(x, low); NaN stays."""
    return low if x < low else x
