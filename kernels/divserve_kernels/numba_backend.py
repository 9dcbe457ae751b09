"""The guidance operation fused for CPUs: vector code that numba compiles at the first call.

It makes three passes over the rows, in segments that stay in the cores' caches; nothing of the size
of a row is allocated. Segments have a fixed length, and the threads share all segments of the step.
So a single guided row uses every core, and the result does not depend on the number of cores.

    pass 1  each segment: maximum, Σ exp, smallest finite logit            numba_extents
    merge   each row: log-sum-exp; the line below which tokens are dropped
            each row that keeps a nucleus: its smallest logit              numba_nucleus
    pass 2  each segment: entropy, KL, JSD, overlap, Σ p², counts          numba_divergences
    merge   each row: weights, temperature factor, statistics
    pass 3  each segment: combine, mask, scale, write                      numba_write
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from divserve_contract import STATISTICS
from divserve_kernels import numba_columns as col
from divserve_kernels.layout import ABSENT, FIRST_SIDE
from divserve_kernels.numba_columns import KEEP, LOGITS, MISSING, SIDE
from divserve_kernels.numba_divergences import compare, merge_divergences
from divserve_kernels.numba_extents import merge_extents, observe
from divserve_kernels.numba_host import limit_threads, memory
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_nucleus import keep_nucleus
from divserve_kernels.numba_write import write
from divserve_kernels.streams import Streams

__all__ = ["guide", "supports"]

SEGMENT = 8192
"""Entries of a segment: those of two rows fill a first-level cache."""


def supports(logits: Tensor, side: Tensor | None, out: Tensor) -> bool:
    """Whether these tensors are supported: float32 on the CPU, rows without gaps."""
    tensors = (logits, out) if side is None else (logits, side, out)
    return all(
        t.device.type == "cpu" and t.dtype is torch.float32 and t.stride(-1) == 1 for t in tensors
    )


def guide(logits: Tensor, streams: Streams, side: Tensor | None, out: Tensor) -> Tensor:
    """See `divserve_kernels.guide`; `supports` must hold."""
    limit_threads()
    # If no stream is in it, any tensor will do.
    side = logits if side is None else side
    groups, segments = len(streams), -(-logits.shape[1] // SEGMENT)
    statistics = np.zeros((groups, len(STATISTICS)), dtype=np.float32)
    places = np.empty((groups, col.PLACES), dtype=np.int64)
    _locate(
        places, streams.primary.numpy(), streams.guide.numpy(), streams.third.numpy(),
        logits.stride(0), logits.shape[1], side.stride(0), side.shape[1],
    )  # fmt: skip
    _run(
        memory(logits), memory(side), memory(out), out.stride(0), out.shape[1], out is logits,
        streams.any_nucleus, places, streams.primary.numpy(), streams.table.numpy(),
        streams.slot.numpy(), np.empty((groups, segments, col.FOUND)),
        np.empty((groups, col.DERIVED), dtype=np.float32), statistics,
    )  # fmt: skip
    return torch.from_numpy(statistics)


@compiled()
def _locate(
    places: Any, primary: Any, guide: Any, third: Any, stride: int, vocab: int, side_stride: int,
    side_vocab: int,
) -> None:  # fmt: skip
    """Fills ``places`` ``[G, col.PLACES] int64`` from the stream indices ``[G] int64``."""
    for g in range(primary.size):
        places[g, col.AT1] = primary[g] * stride
        places[g, col.VOCAB] = 0 if primary[g] == ABSENT else vocab
        for index, source, at in ((guide[g], col.FROM2, col.AT2), (third[g], col.FROM3, col.AT3)):
            places[g, source] = MISSING
            if index >= 0:
                places[g, source], places[g, at] = LOGITS, index * stride
            elif index != ABSENT:
                places[g, source], places[g, at] = SIDE, (FIRST_SIDE - index) * side_stride
                places[g, col.VOCAB] = min(places[g, col.VOCAB], side_vocab)


@compiled()
def _segment(place: Any, s: int, logits: Any, side: Any) -> tuple[Any, Any, Any]:
    """The s-th segment of a row's streams; the primary stands in for missing ones."""
    start = s * SEGMENT
    size = max(0, min(SEGMENT, place[col.VOCAB] - start))
    z1 = logits[place[col.AT1] + start : place[col.AT1] + start + size]
    z2, z3 = z1, z1
    if place[col.FROM2] != MISSING:
        source = logits if place[col.FROM2] == LOGITS else side
        z2 = source[place[col.AT2] + start : place[col.AT2] + start + size]
    if place[col.FROM3] != MISSING:
        source = logits if place[col.FROM3] == LOGITS else side
        z3 = source[place[col.AT3] + start : place[col.AT3] + start + size]
    return z1, z2, z3


@compiled(parallel=True)
def _run(
    logits: Any, side: Any, out: Any, out_stride: int, out_vocab: int, in_place: bool,
    any_nucleus: bool, places: Any, primary: Any, table: Any, slot: Any, found: Any, derived: Any,
    statistics: Any,
) -> None:  # fmt: skip
    """The passes over all segments of all rows; see the module's docstring."""
    groups, segments = found.shape[0], found.shape[1]
    for task in prange(groups * segments):
        g, s = task // segments, task % segments
        z1, z2, z3 = _segment(places[g], s, logits, side)
        observe(found[g, s], z1, z2, z3, places[g])
    for g in range(groups):
        merge_extents(found[g], derived[g], places[g], table[:, slot[g]], statistics[g])
    if any_nucleus:
        for g in prange(groups):
            keep_nucleus(derived[g], places[g], table[:, slot[g]], logits)
    for task in prange(groups * segments):
        g, s = task // segments, task % segments
        z1, z2, _z3 = _segment(places[g], s, logits, side)
        compare(found[g, s], z1, z2, places[g], derived[g], table[:, slot[g]])
    for g in range(groups):
        merge_divergences(found[g], derived[g], places[g], table[:, slot[g]], statistics[g])
    for task in prange(groups * segments):
        g, s = task // segments, task % segments
        if places[g, col.MODE] != KEEP:
            z1, z2, z3 = _segment(places[g], s, logits, side)
            at = primary[g] * out_stride
            mine = out[at + s * SEGMENT : at + s * SEGMENT + z1.size]
            if not in_place:
                mine[:] = z1
            write(mine, z2, z3, places[g], derived[g])
            if s == 0:
                out[at + places[g, col.VOCAB] : at + out_vocab] = -np.inf
