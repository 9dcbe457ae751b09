"""The work of one block of threads on one segment of a row: the passes, together or one by one."""

from __future__ import annotations

import triton
import triton.language as tl

from divserve_kernels.triton_math import (
    ABSENT,
    INFINITY,
    LN2,
    LOG2E,
    OBSERVE,
    PROBABILITY,
    SMALLEST,
    SWITCH,
    at_least,
    finite,
    log2,
    meet,
    parameter,
    partials,
    places,
    put,
    record,
    report,
    stream,
)
from divserve_kernels.triton_nucleus import LINE, rate, smallest_of_nucleus, warm
from divserve_kernels.triton_passes import (
    BOTH,
    ENTROPY,
    JSD,
    KEPT,
    KL,
    LOW3,
    SPECIAL,
    SQUARES,
    TOP1,
    TOP2,
    VARIATION,
    compare,
    cool,
    extent,
    merged,
    mix,
    smallest,
    switch,
    total,
    weights,
)

__all__ = ["ALL", "COMPARE", "EXTENTS", "WRITE", "guide_segment"]

ALL, EXTENTS, COMPARE, WRITE = (tl.constexpr(i) for i in range(4))


@triton.jit
def uniform(size: tl.tensor, width: tl.constexpr, strips: tl.constexpr) -> tl.tensor:
    """A tile of zeros; −∞ from ``size`` on."""
    z = ()
    for i in tl.static_range(strips):
        z += (tl.where(tl.arange(0, width) < size - i * width, 0.0, -INFINITY),)
    return z


@triton.jit
def blends(program: tl.tensor, third: tl.tensor) -> tl.tensor:
    """Whether a row has a third stream with a weight."""
    form = parameter(program, "form")
    weighs = (third != ABSENT) & (parameter(program, "third_weight") != 0)
    return weighs & (form != SWITCH) & (form != PROBABILITY)


@triton.jit
def settle(
    here: tl.tensor, program: tl.tensor, statistics: tl.tensor, top: tl.tensor, lse: tl.tensor,
    alone: tl.tensor, padded: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The merge after pass 2; the first segment writes the row's ``statistics``.

    Returns (weight, a, b, the factor of logits, whether the form's special case holds: two tokens
    near the top, or the contrast of probabilities).
    """
    form = parameter(program, "form")
    dead = top == -INFINITY
    entropy = at_least(merged(here, ENTROPY, dead, padded) * LN2, 0.0)
    kl = at_least(merged(here, KL, dead, padded) * LN2, 0.0)
    jsd = at_least(merged(here, JSD, dead, padded) * (LN2 / 2), 0.0)
    squares = merged(here, SQUARES, dead, padded)
    kept = merged(here, KEPT, dead, padded)
    special = merged(here, SPECIAL, dead, padded)
    factor = cool(program, kl, entropy)
    weight, a, b = weights(program, tl.where(form == PROBABILITY, 0.0, jsd), alone)
    used = weight - parameter(program, "guide_weight")
    holds = special > 1
    if form == SWITCH:
        used = tl.where(holds, weight, weight - 1)
    elif form == PROBABILITY:
        holds = (squares <= parameter(program, "gate")) & (special > 0)
        used = tl.where(holds, used, 0.0)
        kept = tl.where(holds, special, kept)
        a, b = tl.where(holds, a, 1.0), tl.where(holds, b, 0.0)
    if here[1] == 0:
        max_prob = tl.where(dead, 0.0, tl.exp2(finite(top) * LOG2E - lse))
        report(statistics, "entropy", entropy)
        report(statistics, "kl", kl)
        report(statistics, "jsd", jsd)
        report(statistics, "max_prob", max_prob)
        report(statistics, "sum_p2", squares)
        report(statistics, "alpha", used)
        report(statistics, "factor", factor)
        report(statistics, "kept", kept)
        overlap = at_least(1 - merged(here, VARIATION, dead, padded), 0.0)
        agree = tl.where(merged(here, BOTH, dead, padded) > 0, 1.0, 0.0)
        report(statistics, "overlap", tl.where(dead, 0.0, overlap))
        report(statistics, "agree", tl.where(overlap == overlap, agree, overlap))
    return weight, a, b, 1 / factor, holds


@triton.jit
def guide_segment(
    sources: tl.tensor, row: tl.tensor, program: tl.tensor, out: tl.tensor, out_stride: tl.tensor,
    out_step: tl.tensor, here: tl.tensor, statistics: tl.tensor, semaphore: tl.tensor,
    width: tl.constexpr, strips: tl.constexpr, padded: tl.constexpr, phase: tl.constexpr,
    nucleus: tl.constexpr,
) -> None:  # fmt: skip
    """One phase, or all of them, for one segment of one row."""
    primary, second, third, vocab = places(sources, row)
    start = here[1] * (width * strips)
    size = vocab - start
    z1 = stream(sources, primary, start, size, width, strips)
    z2 = stream(sources, second, start, size, width, strips)

    if phase == ALL or phase == EXTENTS:
        extent(here, TOP1, z1, padded)
        extent(here, TOP2, z2, padded)
        low3 = INFINITY
        if blends(program, third):
            low3 = smallest(stream(sources, third, start, size, width, strips))
        record(here, LOW3, low3, padded)
        if nucleus:
            if parameter(program, "top_p") < 1:
                warm(here, z1, rate(program), padded)
    if phase == ALL:
        meet(semaphore, here)

    if phase != EXTENTS:
        top1, lse1, low1 = total(here, TOP1, padded)
        line = top1 + parameter(program, "log_plausibility")
        line = tl.where(line > SMALLEST, line, SMALLEST)
        if nucleus:
            if parameter(program, "top_p") < 1:
                if phase == ALL:
                    least = smallest_of_nucleus(
                        here, z1, semaphore, program, top1, low1, size, padded
                    )
                    # Read again, starting with the indices: no registers are free to keep it.
                    top1, lse1, low1 = total(here, TOP1, padded)
                    _, second, _, vocab = places(sources, row)
                    size = vocab - start
                    z2 = stream(sources, second, start, size, width, strips)
                else:
                    least = tl.load(here[0] + LINE * padded)
                line = tl.maximum(line, least)
        top2, lse2, low2 = total(here, TOP2, padded)
        if top2 == -INFINITY:
            z2 = uniform(size, width, strips)
            lse2 = log2(vocab.to(tl.float32))
            top2, low2 = 0.0, 0.0
        alone = tl.load(row[1]) == ABSENT
    if phase == ALL or phase == COMPARE:
        compare(here, z1, z2, lse1, lse2, program, top1, top2, line, vocab, alone, size, padded)
    if phase == ALL:
        meet(semaphore, here)

    if phase == ALL or phase == WRITE:
        weight, a, b, cooling, holds = settle(here, program, statistics, top1, lse1, alone, padded)
        form = parameter(program, "form")
        room = sources[6] - start
        out += tl.load(row[0]) * out_stride + start * out_step
        if form == OBSERVE:
            pass
        elif form == SWITCH:
            above = top1 - parameter(program, "log_ratio")
            above = tl.where(holds, above, INFINITY)
            below = low1 + parameter(program, "log_ratio")
            for i in tl.static_range(strips):
                y = switch(z1[i], z2[i], lse1, lse2, low2, weight, above, below)
                put(out, out_step, i, room, tl.where(z1[i] < line, -INFINITY, y * cooling))
        elif (form == PROBABILITY) & holds:
            min_p = parameter(program, "min_prob") / vocab
            for i in tl.static_range(strips):
                y = mix(z1[i], z2[i], lse1, lse2, a, b, min_p)
                put(out, out_step, i, room, tl.where(z1[i] < line, -INFINITY, y * cooling))
        elif blends(program, third):
            c = parameter(program, "third_weight")
            low3 = tl.min(partials(here, LOW3, INFINITY, padded), 0)
            low3 = tl.where(low3 == INFINITY, 0.0, low3)
            z3 = stream(sources, third, start, size, width, strips)
            for i in tl.static_range(strips):
                y = a * z1[i] + b * at_least(z2[i], low2) + c * at_least(z3[i], low3)
                put(out, out_step, i, room, tl.where(z1[i] < line, -INFINITY, y * cooling))
        else:
            for i in tl.static_range(strips):
                y = a * z1[i] + b * at_least(z2[i], low2)
                put(out, out_step, i, room, tl.where(z1[i] < line, -INFINITY, y * cooling))
