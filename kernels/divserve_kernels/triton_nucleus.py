"""The smallest logit of a row's nucleus, without sorting, as Triton functions.

The nucleus is the smallest set of most likely entries whose mass reaches ``top_p``; equal logits
are kept or dropped together. Each round computes the mass above 8 lines across a bracket and
continues with the part in which the mass is reached. The search ends when one value is left in the
bracket, so the result is exact. Rows of a language model take 2 to 9 rounds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from divserve_kernels import triton_passes
from divserve_kernels.triton_math import (
    INFINITY,
    LOG2E,
    finite,
    meet,
    parameter,
    partials,
    places,
    record,
    record_sums,
    stream,
)
from divserve_kernels.triton_passes import TOP1, largest, sum_exp, total

__all__ = ["FIELDS", "LINE", "rate", "search", "smallest_of_nucleus", "warm"]

LINES = tl.constexpr(8)
ROUNDS = tl.constexpr(48)
"""Limit of rounds; only rows made up to reach it do, and they keep more than their nucleus."""
WINDOW = tl.constexpr(40.0)
"""Distance from the maximum to the first line, in temperatures: hardly any mass is below it."""

# Fields of `found` after those of the passes.
WARM = tl.constexpr(triton_passes.FIELDS.value)
LEAST, MOST = tl.constexpr(LINES.value), tl.constexpr(LINES.value + 1)
ROUND = tl.constexpr(LINES.value + 2)
LINE = tl.constexpr(WARM.value + 1 + 2 * ROUND.value)
"""The result, if it was found in a separate launch."""
FIELDS = tl.constexpr(LINE.value + 1)
"""All fields of `found`."""


@triton.jit
def rate(program: tl.tensor) -> tl.tensor:
    """Factor of a logit in the exponent of 2 that gives its mass."""
    return LOG2E / parameter(program, "top_p_temperature")


@triton.jit
def warm(here: tl.tensor, z: tl.tensor, hot: tl.tensor, padded: tl.constexpr) -> None:
    """Beside pass 1: the mass of a segment, relative to its maximum."""
    record(here, WARM, sum_exp(z, hot, largest(z)), padded)


@triton.jit
def bracket(
    here: tl.tensor, program: tl.tensor, top: tl.tensor, hot: tl.tensor, padded: tl.constexpr
) -> tl.tensor:
    """(the mass to reach, a line above all logits, where the first lines start)."""
    tops = partials(here, TOP1, -INFINITY, padded)
    masses = partials(here, WARM, 0.0, padded)
    whole = tl.sum(masses * tl.exp2((finite(tops) - finite(top)) * hot), 0)
    above = top + tl.abs(top) * 1e-6 + 1e-30
    return whole * parameter(program, "top_p"), above, top - WINDOW * LOG2E / hot


@triton.jit
def at_line(start: tl.tensor, high: tl.tensor, k: tl.constexpr) -> tl.tensor:
    """The k-th line; written so that it does not overflow."""
    return start * (1 - k / LINES) + high * (k / LINES)


@triton.jit
def weigh(
    here: tl.tensor, z: tl.tensor, turn: tl.tensor, low: tl.tensor, high: tl.tensor,
    start: tl.tensor, top: tl.tensor, hot: tl.tensor, size: tl.tensor, padded: tl.constexpr,
) -> None:  # fmt: skip
    """One round in one segment: the masses above the lines, the extremes in the bracket."""
    # A block may still read one round's partials while another has begun the next round.
    field = WARM + 1 + (turn % 2) * ROUND
    shift = finite(top) * hot
    least = tl.full(z[0].shape, INFINITY, tl.float32)
    most = tl.full(z[0].shape, -INFINITY, tl.float32)
    zero = tl.zeros(z[0].shape, tl.float32)
    # Half of the lines at a time, because there are too few registers for all.
    for first in tl.static_range(0, LINES, 4):
        masses = (zero, zero, zero, zero)
        for i in tl.static_range(len(z)):
            if i * z[0].shape[0] < size:
                weight = tl.exp2(tl.fma(z[i], hot, -shift))
                sums = ()
                for k in tl.static_range(4):
                    above = z[i] >= at_line(start, high, first + k)
                    sums += (masses[k] + tl.where(above, weight, 0.0),)
                masses = sums
        record_sums(here, field + first, masses, padded)
    for i in tl.static_range(len(z)):
        inside = (z[i] >= low) & (z[i] < high)
        least = tl.minimum(least, tl.where(inside, z[i], INFINITY))
        most = tl.maximum(most, tl.where(inside, z[i], -INFINITY))
    record(here, field + LEAST, tl.min(least, 0), padded)
    record(here, field + MOST, tl.max(most, 0), padded)


@triton.jit
def narrow(
    here: tl.tensor, turn: tl.tensor, low: tl.tensor, high: tl.tensor, start: tl.tensor,
    target: tl.tensor, padded: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The next bracket (low, high), and the extremes in this one."""
    field = WARM + 1 + (turn % 2) * ROUND
    new_low, new_high = low, high
    for k in tl.static_range(LINES):
        reached = tl.sum(partials(here, field + k, 0.0, padded), 0) >= target
        at = at_line(start, high, k)
        new_low = tl.where(reached, tl.maximum(new_low, at), new_low)
        new_high = tl.where(reached, new_high, tl.minimum(new_high, at))
    least = tl.min(partials(here, field + LEAST, INFINITY, padded), 0)
    most = tl.max(partials(here, field + MOST, -INFINITY, padded), 0)
    return new_low, new_high, least, most


@triton.jit
def smallest_of_nucleus(
    here: tl.tensor, z: tl.tensor, semaphore: tl.tensor, program: tl.tensor, top: tl.tensor,
    low: tl.tensor, size: tl.tensor, padded: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The smallest logit of the nucleus; ``top``, ``low``: largest and smallest of the row."""
    hot = rate(program)
    target, high, start = bracket(here, program, top, hot, padded)
    least, most, turn = low, top, 0
    while (least < most) & (turn < ROUNDS):
        start = tl.where((start > low) & (start < high), start, low)
        weigh(here, z, turn, low, high, start, top, hot, size, padded)
        meet(semaphore, here)
        low, high, least, most = narrow(here, turn, low, high, start, target, padded)
        turn += 1
    return least


@triton.jit
def search(
    sources: tl.tensor, row: tl.tensor, program: tl.tensor, found: tl.tensor, segments: tl.tensor,
    width: tl.constexpr, strips: tl.constexpr, padded: tl.constexpr,
) -> None:  # fmt: skip
    """The same rounds by one block, for all segments of its row; stores the result in `LINE`."""
    if parameter(program, "top_p") < 1:
        here = (found, 0, segments)
        hot = rate(program)
        top, _, low = total(here, TOP1, padded)
        target, high, start = bracket(here, program, top, hot, padded)
        primary, _, _, vocab = places(sources, row)
        least, most, turn = low, top, 0
        while (least < most) & (turn < ROUNDS):
            start = tl.where((start > low) & (start < high), start, low)
            for segment in range(segments):
                at = segment * (width * strips)
                z = stream(sources, primary, at, vocab - at, width, strips)
                there = (found, segment, segments)
                weigh(there, z, turn, low, high, start, top, hot, vocab - at, padded)
            tl.debug_barrier()
            low, high, least, most = narrow(here, turn, low, high, start, target, padded)
            turn += 1
        tl.store(found + LINE * padded, least)
