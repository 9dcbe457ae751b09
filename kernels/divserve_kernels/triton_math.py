"""What the Triton kernels share: constants, tiles and partials in memory, the group barrier.

Log-probabilities are to base 2 inside the kernels, like the hardware's exponential. One fused
multiply-add computes one from a logit, the same for equal logits, so equal rows have a JSD of
exactly 0. Comparisons are written so that NaN passes through them: a broken row shows in its
statistics.

A tile is a tuple of strips ``[n] float32``, which the passes process one after the other: the
intermediate results of one long vector would not fit into the registers.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton.language.extra import libdevice

import divserve_contract
from divserve_contract import Form
from divserve_kernels import layout

__all__ = [
    "ABSENT", "CLIP", "CLIP_LOG", "INFINITY", "INTERPRETED", "LN2", "LOG2E", "MIN_ENTROPY",
    "OBSERVE", "PROBABILITY", "SMALLEST", "SWITCH", "TINY", "at_least", "finite", "log2",
    "log2_prob", "meet", "parameter", "partials", "places", "put", "record", "record_sums",
    "report", "stream",
]  # fmt: skip

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# Triton's cache identifies a kernel by its constants, including these.
PARAMETERS = tl.constexpr(divserve_contract.PARAMETERS)
STATISTICS = tl.constexpr(divserve_contract.STATISTICS)
OBSERVE, SWITCH, PROBABILITY = (
    tl.constexpr(int(form)) for form in (Form.OBSERVE, Form.SWITCH, Form.PROBABILITY)
)
ABSENT, FIRST_SIDE = tl.constexpr(layout.ABSENT), tl.constexpr(layout.FIRST_SIDE)
MIN_ENTROPY = tl.constexpr(layout.MIN_ENTROPY)

INFINITY = tl.constexpr(math.inf)
SMALLEST, TINY = tl.constexpr(layout.SMALLEST), tl.constexpr(layout.TINY)
LOG2E, LN2 = tl.constexpr(math.log2(math.e)), tl.constexpr(math.log(2))
CLIP = tl.constexpr(layout.CLIP)
CLIP_LOG = tl.constexpr(layout.LOG_CLIP * math.log2(math.e))
LOG_ZERO = tl.constexpr(layout.LOG_ZERO * math.log2(math.e))
"""Stands for log2 0."""
SIGN = tl.constexpr(-(2**31))


@triton.jit
def at_least(x: tl.tensor, low: tl.tensor) -> tl.tensor:
    """max(x, low); NaN stays."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def finite(x: tl.tensor) -> tl.tensor:
    """0 for −∞, so that it can be subtracted before exponentiating."""
    return tl.where(x == -INFINITY, 0.0, x)


@triton.jit
def log2(x: tl.tensor) -> tl.tensor:
    """log2 x for normal positive x; log2 1 is exactly 0."""
    # The accurate logarithm takes 25 instructions, as many as the rest of pass 2.
    return tl.log2(x) if INTERPRETED else libdevice.fast_log2f(x)


@triton.jit
def log2_prob(z: tl.tensor, lse: tl.tensor) -> tl.tensor:
    """log2 of a logit's probability; ``lse``: log2 Σ eᶻ."""
    return at_least(tl.fma(z, LOG2E, -lse), LOG_ZERO)


@triton.constexpr_function
def position(names: tuple[str, ...], name: str) -> int:
    """Index of ``name``, known when a kernel is compiled."""
    return names.index(name)


@triton.jit
def parameter(program: tl.tensor, name: tl.constexpr) -> tl.tensor:
    """One number of a program: a column of ``[len(PARAMETERS), capacity] float32``."""
    column, capacity = program
    return tl.load(column + position(PARAMETERS, name) * capacity)


@triton.jit
def report(statistics: tl.tensor, name: tl.constexpr, value: tl.tensor) -> None:
    """Stores one statistic of a row: ``statistics`` ``[len(STATISTICS)] float32``."""
    tl.store(statistics + position(STATISTICS, name), value)


@triton.jit
def load(
    row: tl.tensor, step: tl.tensor, size: tl.tensor, width: tl.constexpr, strips: tl.constexpr
) -> tl.tensor:
    """The tile that starts at ``row``; −∞ from ``size`` on."""
    z = ()
    for i in tl.static_range(strips):
        at = row + i * width * step + tl.arange(0, width) * step
        inside = tl.arange(0, width) < size - i * width
        z += (tl.load(at, mask=inside, other=-INFINITY).to(tl.float32),)
    return z


@triton.jit
def put(
    row: tl.tensor, step: tl.tensor, i: tl.constexpr, size: tl.tensor, values: tl.tensor
) -> None:
    """Stores the i-th strip of a tile that starts at ``row`` and has ``size`` entries."""
    width: tl.constexpr = values.shape[0]
    at = row + i * width * step + tl.arange(0, width) * step
    tl.store(at, values, mask=tl.arange(0, width) < size - i * width)


@triton.jit
def stream(
    sources: tl.tensor, index: tl.tensor, start: tl.tensor, size: tl.tensor,
    width: tl.constexpr, strips: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The tile from ``start`` on of the stream ``index``, which is not `ABSENT`."""
    logits, stride, step, side, side_stride, side_step, _, _ = sources
    if index >= 0:
        z = load(logits + (index * stride + start * step), step, size, width, strips)
    else:
        at = side + ((FIRST_SIDE - index) * side_stride + start * side_step)
        z = load(at, side_step, size, width, strips)
    return z


@triton.jit
def places(sources: tl.tensor, row: tl.tensor) -> tl.tensor:
    """(primary, guide, third stream, shared vocabulary) of a row.

    ``row``: addresses of its three stream indices, ``[1] int64`` each.
    """
    primary, second, third = tl.load(row[0]), tl.load(row[1]), tl.load(row[2])
    vocab = tl.where((second <= FIRST_SIDE) | (third <= FIRST_SIDE), sources[7], sources[6])
    return primary, tl.where(second == ABSENT, primary, second), third, vocab


@triton.jit
def record(here: tl.tensor, field: tl.tensor, value: tl.tensor, padded: tl.constexpr) -> None:
    """Stores what a segment found.

    ``here``: (the row's ``found`` ``[FIELDS, padded] float32``, the segment, how many there are).
    """
    tl.store(here[0] + here[1] + field * padded, value)


@triton.jit
def record_sums(here: tl.tensor, field: tl.tensor, values: tl.tensor, padded: tl.constexpr) -> None:
    """Sums four strips in one reduction and stores the sums from ``field`` on."""
    even, odd = tl.join(values[0], values[2]), tl.join(values[1], values[3])
    sums = tl.reshape(tl.sum(tl.join(even, odd), 0), [4])
    tl.store(here[0] + here[1] + (field + tl.arange(0, 4)) * padded, sums)


@triton.jit
def partials(
    here: tl.tensor, field: tl.tensor, other: tl.tensor, padded: tl.constexpr
) -> tl.tensor:
    """What all segments found, ``[padded] float32``; ``other`` after the last."""
    s = tl.arange(0, padded)
    # Other blocks wrote them while this one ran, so this multiprocessor's cache is bypassed.
    at = here[0] + s + field * padded
    return tl.load(at, mask=s < here[2], other=other, cache_modifier=".cg")


@triton.jit
def meet(semaphore: tl.tensor, here: tl.tensor) -> None:
    """Waits until all blocks of a row are here; then all see what each stored before.

    ``semaphore`` int32: the last block to arrive flips its sign and leaves the other bits 0, so it
    never needs a reset.
    """
    tl.debug_barrier()
    # −2³¹ − (segments − 1), without the overflow.
    first = 2147483647 - (here[2] - 2)
    before = tl.atomic_add(semaphore, tl.where(here[1] == 0, first, 1), sem="release")
    flipped = False
    while not flipped:
        now = tl.atomic_add(semaphore, 0, sem="acquire")
        flipped = ((before ^ now) & SIGN) != 0
    tl.debug_barrier()
