"""The guidance operation fused for CPUs: vector code that numba makes at the first call.

Three passes over the rows that stay in the cores' caches; nothing of the size of a row is
allocated. A row is cut into segments of a fixed length and the threads share all segments of the
step, so one pair uses every core, and the result does not depend on their number.

    pass 1  each segment: maximum, Σ exp, smallest finite logit
    merge   each row: log-sum-exp; the line below which tokens are dropped
    pass 2  each segment: entropy, KL, JSD, overlap, Σ p², counts
    merge   each row: weights, temperature factor, statistics
    pass 3  each segment: combine, mask, scale, write
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import config, prange, set_num_threads
from torch import Tensor

from divserve_kernels import numba_passes as passes
from divserve_kernels.layout import ABSENT, MIN_ENTROPY, PARAMETERS, STATISTICS, Form
from divserve_kernels.numba_jit import compiled
from divserve_kernels.streams import Streams

__all__ = ["guide", "supports"]

SEGMENT = 8192
"""Entries of a row worked on at once: two rows of it fill a first-level cache."""

(
    FORM, ALPHA, JSD_SCALE, FLOOR, PRIMARY_WEIGHT, GUIDE_WEIGHT, THIRD_WEIGHT, LOG_RATIO, GATE,
    MIN_PROB, LOG_PLAUSIBILITY, TOP_P, TOP_P_TEMPERATURE, KL_RATE, ENTROPY_RATE, MIN_FACTOR,
) = range(len(PARAMETERS))  # fmt: skip
OBSERVE, LINEAR, SWITCH, PROBABILITY = (int(form) for form in Form)

# Per segment, float64: what pass 1 and pass 2 found.
TOP1, SUM1, LOW1, TOP2, SUM2, LOW2, LOW3 = range(7)
ENTROPY, KL, JSD, VARIATION, SQUARES, KEPT, SPECIAL, BOTH = range(8)
FOUND = 8
# Per row, float32: what the merges make of it for the next pass.
(
    PEAK1, PEAK2, LSE1, LSE2, HIDDEN2, CLAMP2, CLAMP3, LINE, ABOVE, BELOW, MIN_P, A, B, C, COOLING,
) = range(15)  # fmt: skip
DERIVED = 15
# Per row, int64: where its streams are, and what pass 3 does.
OWN2, OWN3, AT1, AT2, AT3, VOCAB, MODE = range(7)
PLACES = 7
KEEP, SCALE, COMBINE, BLEND, CHOOSE, MIX = range(6)
"""Modes of pass 3."""
MISSING, OWN, HELPER = range(3)
"""Where a stream is."""
MAX_PROB = STATISTICS.index("max_prob")
SMALLEST = np.float32(np.finfo(np.float32).min)


def supports(logits: Tensor, side: Tensor | None, out: Tensor) -> bool:
    """Whether these tensors can be worked on: float32 on the CPU, rows without gaps."""
    tensors = (logits, out) if side is None else (logits, side, out)
    return all(
        t.device.type == "cpu" and t.dtype is torch.float32 and t.stride(-1) == 1 for t in tensors
    )


def guide(logits: Tensor, rows: Streams, side: Tensor | None, out: Tensor) -> Tensor:
    """See `divserve_kernels.guide`; `supports` must hold."""
    # Never more threads than torch may use: the operator has bound those to cores.
    set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))
    aids = logits if side is None else side
    groups, segments = len(rows), -(-logits.shape[1] // SEGMENT)
    statistics = np.zeros((groups, len(STATISTICS)), dtype=np.float32)
    places = np.empty((groups, PLACES), dtype=np.int64)
    _locate(
        places, rows.primary.numpy(), rows.guide.numpy(), rows.third.numpy(),
        logits.stride(0), logits.shape[1], aids.stride(0), aids.shape[1],
    )  # fmt: skip
    _run(
        _memory(logits), _memory(aids), _memory(out), out.stride(0), out.shape[1], out is logits,
        rows.any_nucleus, places, rows.primary.numpy(), rows.table.numpy(), rows.slot.numpy(),
        np.empty((groups, segments, FOUND)), np.empty((groups, DERIVED), dtype=np.float32),
        statistics,
    )  # fmt: skip
    return torch.from_numpy(statistics)


def _memory(tensor: Tensor) -> Any:
    """The memory from the first to the last entry of a ``[R, V]`` tensor, as one array."""
    span = (tensor.shape[0] - 1) * tensor.stride(0) + tensor.shape[1]
    return tensor.detach().as_strided((span,), (1,)).numpy()


@compiled()
def _locate(
    places: Any, primary: Any, guide: Any, third: Any, stride: int, vocab: int, aids_stride: int,
    aids_vocab: int,
) -> None:  # fmt: skip
    """Fills ``places`` ``[G, PLACES] int64`` from the stream indices ``[G] int64``."""
    for g in range(primary.size):
        places[g, AT1] = primary[g] * stride
        places[g, VOCAB] = 0 if primary[g] == ABSENT else vocab
        for index, own, at in ((guide[g], OWN2, AT2), (third[g], OWN3, AT3)):
            places[g, own] = MISSING
            if index >= 0:
                places[g, own], places[g, at] = OWN, index * stride
            elif index != ABSENT:
                places[g, own], places[g, at] = HELPER, (-2 - index) * aids_stride
                places[g, VOCAB] = min(places[g, VOCAB], aids_vocab)


@compiled()
def _segment(place: Any, s: int, logits: Any, aids: Any) -> tuple[Any, Any, Any]:
    """The s-th segment of a row's streams; the primary stands in for missing ones."""
    start = s * SEGMENT
    size = max(0, min(SEGMENT, place[VOCAB] - start))
    z1 = logits[place[AT1] + start : place[AT1] + start + size]
    z2, z3 = z1, z1
    if place[OWN2] != MISSING:
        source = logits if place[OWN2] == OWN else aids
        z2 = source[place[AT2] + start : place[AT2] + start + size]
    if place[OWN3] != MISSING:
        source = logits if place[OWN3] == OWN else aids
        z3 = source[place[AT3] + start : place[AT3] + start + size]
    return z1, z2, z3


@compiled(parallel=True)
def _run(
    logits: Any, aids: Any, out: Any, out_stride: int, out_vocab: int, in_place: bool,
    any_nucleus: bool, places: Any, primary: Any, table: Any, slot: Any, found: Any, derived: Any,
    statistics: Any,
) -> None:  # fmt: skip
    """The passes over all segments of all rows; see the module."""
    groups, segments = found.shape[0], found.shape[1]
    for task in prange(groups * segments):
        g, s = task // segments, task % segments
        z1, z2, z3 = _segment(places[g], s, logits, aids)
        _observe(found[g, s], z1, z2, z3, places[g])
    for g in range(groups):
        _merge_extents(found[g], derived[g], places[g], table[:, slot[g]], statistics[g])
    if any_nucleus:
        for g in prange(groups):
            _keep_nucleus(derived[g], places[g], table[:, slot[g]], logits)
    for task in prange(groups * segments):
        g, s = task // segments, task % segments
        z1, z2, _z3 = _segment(places[g], s, logits, aids)
        _compare(found[g, s], z1, z2, places[g], derived[g], table[:, slot[g]])
    for g in range(groups):
        _merge_divergences(found[g], derived[g], places[g], table[:, slot[g]], statistics[g])
    for task in prange(groups * segments):
        g, s = task // segments, task % segments
        if places[g, MODE] != KEEP:
            z1, z2, z3 = _segment(places[g], s, logits, aids)
            at = primary[g] * out_stride
            mine = out[at + s * SEGMENT : at + s * SEGMENT + z1.size]
            if not in_place:
                mine[:] = z1
            _write(mine, z2, z3, places[g], derived[g])
            if s == 0:
                out[at + places[g, VOCAB] : at + out_vocab] = -np.inf


@compiled()
def _observe(found: Any, z1: Any, z2: Any, z3: Any, place: Any) -> None:
    """Pass 1 of one segment: ``found`` ``[FOUND] float64``."""
    found[TOP1], found[LOW1] = passes.extent(z1)
    found[SUM1] = passes.sum_exp(z1, np.float32(found[TOP1]))
    if place[OWN2] != MISSING:
        found[TOP2], found[LOW2] = passes.extent(z2)
        found[SUM2] = passes.sum_exp(z2, np.float32(found[TOP2]))
    if place[OWN3] != MISSING:
        _top, found[LOW3] = passes.extent(z3)


@compiled()
def _total(found: Any, top: int, sums: int) -> tuple[float, float]:
    """(maximum, log-sum-exp) of a row from those of its segments; (−inf, −inf) if all is masked."""
    highest, total = -math.inf, 0.0
    for s in range(found.shape[0]):
        highest = found[s, top] if not found[s, top] <= highest else highest
    if highest == -math.inf:
        return highest, highest
    for s in range(found.shape[0]):
        if found[s, top] != -math.inf:
            total += found[s, sums] * math.exp(found[s, top] - highest)
    return highest, highest + math.log(total)


@compiled()
def _merge_extents(found: Any, derived: Any, place: Any, program: Any, statistics: Any) -> None:
    """What pass 2 needs to know of a row: ``derived`` ``[DERIVED] float32``."""
    top, derived[LSE1] = _total(found, TOP1, SUM1)
    derived[PEAK1] = derived[PEAK2] = top
    statistics[MAX_PROB] = 0.0 if top == -math.inf else math.exp(top - derived[LSE1])
    derived[HIDDEN2] = -math.inf
    derived[CLAMP2] = found[:, LOW1].min()
    if place[OWN2] != MISSING:
        derived[CLAMP2] = found[:, LOW2].min()
        derived[PEAK2], derived[LSE2] = _total(found, TOP2, SUM2)
        if derived[PEAK2] == -math.inf:
            # A guide that is masked everywhere knows nothing: uniform.
            derived[HIDDEN2] = derived[CLAMP2] = 0
            derived[LSE2] = math.log(max(place[VOCAB], 1))
    derived[CLAMP3] = found[:, LOW3].min()
    if derived[CLAMP3] == math.inf:
        derived[CLAMP3] = 0
    line = np.float32(top) + program[LOG_PLAUSIBILITY]
    derived[LINE] = line if line > SMALLEST else SMALLEST
    derived[ABOVE] = np.float32(top) - program[LOG_RATIO]
    derived[BELOW] = np.float32(found[:, LOW1].min()) + program[LOG_RATIO]
    derived[MIN_P] = program[MIN_PROB] / max(place[VOCAB], 1)


@compiled()
def _keep_nucleus(derived: Any, place: Any, program: Any, logits: Any) -> None:
    """Raises the line of a row that keeps a nucleus."""
    if program[TOP_P] < 1 and place[VOCAB] > 0 and derived[LSE1] > -math.inf:
        row = logits[place[AT1] : place[AT1] + place[VOCAB]]
        line = passes.nucleus(row, program[TOP_P_TEMPERATURE], program[TOP_P])
        derived[LINE] = max(derived[LINE], line)


@compiled()
def _compare(found: Any, z1: Any, z2: Any, place: Any, derived: Any, program: Any) -> None:
    """Pass 2 of one segment: ``found`` ``[FOUND] float64`` anew."""
    peaks = found[TOP1] == derived[PEAK1] and found[TOP2] == derived[PEAK2]
    found[:] = 0
    if derived[LSE1] == -math.inf:
        return
    lse1, lse2, hidden, line = derived[LSE1], derived[LSE2], derived[HIDDEN2], derived[LINE]
    if place[OWN2] == MISSING:
        found[ENTROPY], found[SQUARES], found[KEPT] = passes.solo(z1, lse1, line)
        # 0, or NaN in a broken row.
        found[VARIATION], found[BOTH] = lse1 - lse1, 1
        lse2 = lse1
    else:
        found[JSD], found[VARIATION] = passes.distances(z1, z2, lse1, lse2, hidden)
        found[ENTROPY], found[KL], found[SQUARES], found[KEPT] = passes.divergences(
            z1, z2, lse1, lse2, hidden, line
        )
        # Only where both streams have their maximum can a token be likeliest in both.
        if peaks:
            found[BOTH] = passes.count_both(z1, z2, derived[PEAK1], derived[PEAK2])
    if program[FORM] == SWITCH:
        found[SPECIAL] = passes.count_above(z1, derived[ABOVE])
    elif program[FORM] == PROBABILITY:
        a, b = _probability_weights(program)
        found[SPECIAL] = passes.count_mixed(z1, z2, lse1, lse2, hidden, a, b, derived[MIN_P], line)


@compiled()
def _probability_weights(program: Any) -> tuple[np.float32, np.float32]:
    """The weights of `Form.PROBABILITY`, which depend on no statistic."""
    weight = max(program[ALPHA], program[FLOOR])
    return program[PRIMARY_WEIGHT] + weight, program[GUIDE_WEIGHT] - weight


@compiled()
def _merge_divergences(found: Any, derived: Any, place: Any, program: Any, statistics: Any) -> None:
    """A row's statistics ``[len(STATISTICS)] float32``, and what pass 3 shall do."""
    place[MODE] = KEEP
    if place[VOCAB] == 0:
        return
    entropy, kl = _positive(found[:, ENTROPY].sum()), _positive(found[:, KL].sum())
    jsd, squares = _positive(found[:, JSD].sum() / 2), found[:, SQUARES].sum()
    kept, special = found[:, KEPT].sum(), found[:, SPECIAL].sum()
    halvings = program[KL_RATE] * kl + program[ENTROPY_RATE] / max(entropy, MIN_ENTROPY)
    factor = _highest(2.0**-halvings, program[MIN_FACTOR])
    weight = _highest(program[ALPHA] + program[JSD_SCALE] * jsd, program[FLOOR])
    derived[A], derived[B] = program[PRIMARY_WEIGHT] + weight, program[GUIDE_WEIGHT] - weight
    derived[C] = program[THIRD_WEIGHT]
    derived[COOLING] = 1 / factor
    used = -derived[B]

    if place[OWN2] == MISSING:
        derived[A], derived[LSE2] = derived[A] + derived[B], derived[LSE1]
    if program[FORM] == SWITCH:
        place[MODE] = CHOOSE
        derived[B] = weight
        used = weight if special > 1 else weight - 1
        derived[ABOVE] = derived[ABOVE] if special > 1 else math.inf
    elif program[FORM] == PROBABILITY:
        contrast = squares <= program[GATE] and special > 0
        place[MODE] = MIX if contrast else SCALE
        used, kept = (used, special) if contrast else (0.0, kept)
        derived[A] = _probability_weights(program)[0] if contrast else 1
    elif program[FORM] == LINEAR:
        place[MODE] = BLEND if place[OWN3] != MISSING and derived[C] != 0 else COMBINE
        if place[MODE] == COMBINE and place[OWN2] == MISSING:
            place[MODE] = SCALE
    statistics[0], statistics[1], statistics[2], statistics[4] = entropy, kl, jsd, squares
    statistics[5], statistics[6], statistics[7] = used, factor, kept
    statistics[8], statistics[9] = _nearness(found, derived[LSE1])


@compiled()
def _nearness(found: Any, lse1: Any) -> tuple[float, float]:
    """Overlap of a row's two distributions, and whether a token is likeliest in both."""
    if lse1 == -math.inf:
        return 0.0, 0.0
    overlap = _positive(1 - found[:, VARIATION].sum())
    agree = 1.0 if found[:, BOTH].sum() > 0 else 0.0
    return overlap, agree if overlap == overlap else overlap


@compiled()
def _positive(x: float) -> float:
    """Without the rounding below zero; NaN stays."""
    return 0.0 if x < 0 else x


@compiled()
def _highest(x: float, low: float) -> float:
    """max(x, low); NaN stays."""
    return low if x < low else x


@compiled()
def _write(out: Any, z2: Any, z3: Any, place: Any, derived: Any) -> None:
    """Pass 3 of one segment; ``out`` ``[n] float32`` holds z1 and is overwritten."""
    a, b, c, cooling, line = derived[A], derived[B], derived[C], derived[COOLING], derived[LINE]
    lse1, lse2, clamp = derived[LSE1], derived[LSE2], derived[CLAMP2]
    mode = place[MODE]
    if mode == SCALE:
        passes.scale(out, a, cooling, line)
    elif mode == COMBINE:
        passes.combine(out, z2, a, b, clamp, cooling, line)
    elif mode == BLEND:
        passes.blend(out, z2, z3, a, b, c, clamp, derived[CLAMP3], cooling, line)
    elif mode == CHOOSE:
        above, below = derived[ABOVE], derived[BELOW]
        passes.switch(out, z2, lse1, lse2, clamp, b, above, below, cooling, line)
    else:
        passes.mix(out, z2, lse1, lse2, derived[HIDDEN2], a, b, derived[MIN_P], cooling, line)
