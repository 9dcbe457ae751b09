"""The passes over one tile, and the merges of what the tiles of a row found, as Triton functions.

``z1``, ``z2`` are tiles of the row's streams, −∞ beyond the vocabulary that they share; ``here``
says where the segments of a row store what they found for each other (`record`). All of them merge
the same partials in the same order, so they get the same scalars.
"""

from __future__ import annotations

import triton
import triton.language as tl

from divserve_kernels.triton_math import (
    CLIP,
    CLIP_LOG,
    INFINITY,
    LN2,
    LOG2E,
    MIN_ENTROPY,
    PROBABILITY,
    SWITCH,
    TINY,
    at_least,
    finite,
    log2,
    log2_prob,
    parameter,
    partials,
    record,
    record_sums,
)

__all__ = [
    "BOTH", "ENTROPY", "FIELDS", "JSD", "KEPT", "KL", "LOW3", "SPECIAL", "SQUARES", "TOP1",
    "TOP2", "VARIATION", "compare", "cool", "extent", "largest", "merged", "mix", "smallest",
    "sum_exp", "switch", "total", "weights",
]  # fmt: skip

# Fields of `found`. Pass 1: three for each stream, but for the third stream only the last.
TOP1, SUM1, LOW1, TOP2, SUM2, LOW2, LOW3 = (tl.constexpr(i) for i in range(7))
# Pass 2; four are stored at a time: those from the entropy on, then the counts and a blank.
VARIATION, ENTROPY, KL, JSD, SQUARES, KEPT, SPECIAL, BOTH = (tl.constexpr(i) for i in range(7, 15))
FIELDS = tl.constexpr(16)


@triton.jit
def largest(z: tl.tensor) -> tl.tensor:
    """The maximum of a tile."""
    top = z[0]
    for i in tl.static_range(1, len(z)):
        top = tl.maximum(top, z[i])
    return tl.max(top, 0)


@triton.jit
def smallest(z: tl.tensor) -> tl.tensor:
    """The smallest entry of a tile above −∞; ∞ where there is none."""
    low = tl.where(z[0] == -INFINITY, INFINITY, z[0])
    for i in tl.static_range(1, len(z)):
        low = tl.minimum(low, tl.where(z[i] == -INFINITY, INFINITY, z[i]))
    return tl.min(low, 0)


@triton.jit
def sum_exp(z: tl.tensor, rate: tl.tensor, top: tl.tensor) -> tl.tensor:
    """Σ 2^(rate·(z − top)) of a tile."""
    shift = finite(top) * rate
    total = tl.exp2(tl.fma(z[0], rate, -shift))
    for i in tl.static_range(1, len(z)):
        total += tl.exp2(tl.fma(z[i], rate, -shift))
    return tl.sum(total, 0)


@triton.jit
def extent(here: tl.tensor, field: tl.constexpr, z: tl.tensor, padded: tl.constexpr) -> None:
    """Pass 1 of one stream."""
    top = largest(z)
    record(here, field, top, padded)
    record(here, field + 1, sum_exp(z, LOG2E, top), padded)
    record(here, field + 2, smallest(z), padded)


@triton.jit
def total(here: tl.tensor, field: tl.constexpr, padded: tl.constexpr) -> tl.tensor:
    """(maximum, log2 Σ eᶻ, smallest finite entry) of a stream; (−∞, 0, ∞) where all is masked."""
    tops = partials(here, field, -INFINITY, padded)
    sums = partials(here, field + 1, 0.0, padded)
    low = tl.min(partials(here, field + 2, INFINITY, padded), 0)
    top = tl.max(tops, 0)
    shift = finite(top) * LOG2E
    weight = tl.sum(sums * tl.exp2(finite(tops) * LOG2E - shift), 0)
    # A maximum ignores NaN, a sum does not.
    top = tl.where(weight == weight, top, weight)
    return top, shift + log2(tl.where(weight == 0, 1.0, weight)), low


@triton.jit
def compare(
    here: tl.tensor, z1: tl.tensor, z2: tl.tensor, lse1: tl.tensor, lse2: tl.tensor,
    program: tl.tensor, top1: tl.tensor, top2: tl.tensor, line: tl.tensor, vocab: tl.tensor,
    alone: tl.tensor, size: tl.tensor, padded: tl.constexpr,
) -> None:  # fmt: skip
    """Pass 2: entropy, clipped KL and 2·JSD in bits, Σ p1², Σ (p1 − p2)⁺, three counts.

    log2(m/p1) is log2((1 + 2^d)/2) with d = l2 − l1: exactly 0 if p1 = p2, as is p1 − p2. It counts
    the entries kept, those of `special`, and those that are the most likely in both streams.
    """
    zero = tl.zeros(z1[0].shape, tl.float32)
    entropy, kl, jsd, squares, variation = zero, zero, zero, zero, zero
    kept, special, both = zero, zero, zero
    for i in tl.static_range(len(z1)):
        # The branch also keeps the compiler from interleaving the strips.
        if i * z1[0].shape[0] < size:
            l1, l2 = log2_prob(z1[i], lse1), log2_prob(z2[i], lse2)
            p1 = tl.exp2(l1)
            entropy -= p1 * l1
            kl += at_least(p1, CLIP) * (at_least(l1, CLIP_LOG) - at_least(l2, CLIP_LOG))
            ratio = tl.exp2(l2 - l1)
            half = log2(0.5 + 0.5 * ratio)
            jsd += p1 * (ratio * (l2 - l1 - half) - half)
            squares += p1 * p1
            variation += p1 * at_least(1.0 - ratio, 0.0)
    record_sums(here, ENTROPY, (entropy, kl, jsd, squares), padded)
    # Stored now, not with the counts: the registers would spill into memory.
    record(here, VARIATION, tl.sum(variation, 0), padded)
    # Not in the same loop: the registers are all in use there.
    for i in tl.static_range(len(z1)):
        kept += tl.where(z1[i] < line, 0.0, 1.0)
        both += tl.where((z1[i] == top1) & (z2[i] == top2), 1.0, 0.0)
    form = parameter(program, "form")
    if form == SWITCH:
        above = top1 - parameter(program, "log_ratio")
        for i in tl.static_range(len(z1)):
            special += tl.where(z1[i] > above, 1.0, 0.0)
    elif form == PROBABILITY:
        _, a, b = weights(program, 0.0, alone)
        min_p = parameter(program, "min_prob") / vocab
        for i in tl.static_range(len(z1)):
            q = mixed(z1[i], z2[i], lse1, lse2, a, b, min_p)
            special += tl.where((z1[i] >= line) & (q > 0), 1.0, 0.0)
    record_sums(here, KEPT, (kept, special, both, zero), padded)


@triton.jit
def merged(
    here: tl.tensor, field: tl.constexpr, dead: tl.tensor, padded: tl.constexpr
) -> tl.tensor:
    """The sum of what all segments found; 0 for a row without a finite logit."""
    return tl.where(dead, 0.0, tl.sum(partials(here, field, 0.0, padded), 0))


@triton.jit
def cool(program: tl.tensor, kl: tl.tensor, entropy: tl.tensor) -> tl.tensor:
    """The factor that the row's temperature is multiplied by."""
    halvings = parameter(program, "kl_rate") * kl
    halvings += parameter(program, "entropy_rate") / at_least(entropy, MIN_ENTROPY)
    return at_least(tl.exp2(-halvings), parameter(program, "min_factor"))


@triton.jit
def weights(program: tl.tensor, jsd: tl.tensor, alone: tl.tensor) -> tl.tensor:
    """(the contrast's weight, a, b); ``alone``: the guide is the primary itself."""
    weight = parameter(program, "alpha") + parameter(program, "jsd_scale") * jsd
    weight = at_least(weight, parameter(program, "floor"))
    a = parameter(program, "primary_weight") + weight
    b = parameter(program, "guide_weight") - weight
    return weight, tl.where(alone, a + b, a), tl.where(alone, 0.0, b)


@triton.jit
def switch(
    z1: tl.tensor, z2: tl.tensor, lse1: tl.tensor, lse2: tl.tensor, low2: tl.tensor,
    weight: tl.tensor, above: tl.tensor, below: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """COIECD's two contrasts: the context's above or below both lines, the memory's between."""
    l1, l2 = z1 - lse1 * LN2, at_least(z2, low2) - lse2 * LN2
    return tl.where((z1 > above) | (z1 < below), l1, l2) + weight * (l1 - l2)


@triton.jit
def mixed(
    z1: tl.tensor, z2: tl.tensor, lse1: tl.tensor, lse2: tl.tensor, a: tl.tensor, b: tl.tensor,
    min_p: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """a·p1 + b·p2, or 0 where p1 is below its floor."""
    p1 = tl.exp2(log2_prob(z1, lse1))
    return tl.where(p1 < min_p, 0.0, a * p1 + b * tl.exp2(log2_prob(z2, lse2)))


@triton.jit
def mix(
    z1: tl.tensor, z2: tl.tensor, lse1: tl.tensor, lse2: tl.tensor, a: tl.tensor, b: tl.tensor,
    min_p: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """log(a·p1 + b·p2); −∞ where the sum is not a probability."""
    q = mixed(z1, z2, lse1, lse2, a, b, min_p)
    return tl.where(q <= 0, -INFINITY, LN2 * log2(at_least(q, TINY)))
