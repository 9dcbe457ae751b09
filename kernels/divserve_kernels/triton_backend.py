"""The guidance operation for NVIDIA GPUs: one launch for all rows of a step, in Triton.

A row is cut into segments. Each has a block of threads (Triton's "program"; here that word means a
method's numbers), which keeps its tile of both streams in registers: two rows are read once and one
is written once. Between the passes the blocks of a row *meet* and merge what each found, a few
numbers, in the same order, so the result does not depend on which was first. The launch is
cooperative: the driver guarantees that all blocks run at once, or rejects it.

``DIVSERVE_TRITON=phased`` uses a launch per pass instead, and each reads the rows again. Triton's
interpreter, which runs one block after the other, can only work that way.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from divserve_contract import PARAMETERS, STATISTICS
from divserve_kernels.streams import Streams
from divserve_kernels.triton_launch import launch, multiprocessors
from divserve_kernels.triton_math import ABSENT, INTERPRETED
from divserve_kernels.triton_nucleus import FIELDS, search
from divserve_kernels.triton_row import ALL, COMPARE, EXTENTS, WRITE, guide_segment

__all__ = ["compile_variant", "guide", "variant"]

WARPS = 16
WIDTH = 2048
"""Entries of a strip: four per thread."""
STRIPS = 6
"""Strips of a tile: a block's registers can hold 12,288 entries of two rows."""
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": True}
COLUMNS = tl.constexpr(len(STATISTICS))


@triton.jit
def _row_of(primary, guide, third, slot, table, capacity, g):  # type: ignore[no-untyped-def]
    """Addresses of the stream indices and the program of row ``g``."""
    return (primary + g, guide + g, third + g), (table + tl.load(slot + g), capacity)


UNIT = 16
"""Strides and sizes are passed in units of so many entries, if all are multiples of it: then they
are known to be aligned, whatever they are, and loads and stores take four entries at a time."""


# Numbers that differ between two calls of a server must not each cause a new compilation.
@triton.jit(
    do_not_specialize=[
        "stride", "side_stride", "out_stride", "rows", "vocab", "shared", "segments", "capacity",
    ],
    do_not_specialize_on_alignment=["primary", "guide", "third", "slot"],
)  # fmt: skip
def _segments(  # type: ignore[no-untyped-def]
    logits,  # [R, V] float32 or bfloat16
    stride, step,
    side,  # [H, W] float32 or bfloat16
    side_stride, side_step,
    out,  # [R, V] float32, primary rows overwritten
    out_stride, out_step,
    primary, guide, third, slot,  # [rows] int64
    table,  # [len(PARAMETERS), capacity] float32
    found,  # [rows, FIELDS, padded] float32: what segments leave for each other
    statistics,  # [rows, COLUMNS] float32
    semaphores,  # [groups] int32, 0 at the very first launch
    rows, vocab, shared, segments, capacity,
    width: tl.constexpr, strips: tl.constexpr, padded: tl.constexpr, unit: tl.constexpr,
    phase: tl.constexpr, nucleus: tl.constexpr,
):  # fmt: skip
    """One phase, or all, of every row: each group of ``segments`` blocks takes every n-th row.

    Strides of rows, and sizes of vocabularies, are in units of ``unit`` entries.
    """
    sources = (
        logits, stride * unit, step, side, side_stride * unit, side_step, vocab * unit,
        shared * unit,
    )  # fmt: skip
    out_stride = out_stride * unit
    group, segment = tl.program_id(0) // segments, tl.program_id(0) % segments
    groups = tl.num_programs(0) // segments
    for g in range(group, rows, groups):
        figures = statistics + g * COLUMNS
        if tl.load(primary + g) == ABSENT:
            if segment == 0:
                for column in tl.static_range(COLUMNS):
                    tl.store(figures + column, 0.0)
        else:
            row, program = _row_of(primary, guide, third, slot, table, capacity, g)
            here = (found + g * (FIELDS * padded), segment, segments)
            guide_segment(
                sources, row, program, out, out_stride, out_step, here, figures,
                semaphores + group, width, strips, padded, phase, nucleus,
            )  # fmt: skip


@triton.jit(
    do_not_specialize=["stride", "side_stride", "vocab", "shared", "segments", "capacity"],
    do_not_specialize_on_alignment=["primary", "guide", "third", "slot"],
)
def _nuclei(  # type: ignore[no-untyped-def]
    logits, stride, step, side, side_stride, side_step, primary, guide, third, slot, table, found,
    vocab, shared, segments, capacity,
    width: tl.constexpr, strips: tl.constexpr, padded: tl.constexpr, unit: tl.constexpr,
):  # fmt: skip
    """Between the phases: one block finds the nucleus of a row. Arguments as above."""
    g = tl.program_id(0)
    if tl.load(primary + g) != ABSENT:
        sources = (
            logits, stride * unit, step, side, side_stride * unit, side_step, vocab * unit,
            shared * unit,
        )  # fmt: skip
        row, program = _row_of(primary, guide, third, slot, table, capacity, g)
        search(
            sources, row, program, found + g * (FIELDS * padded), segments, width, strips, padded
        )


def guide(
    logits: Tensor,
    streams: Streams,
    side: Tensor | None,
    out: Tensor,
    width: int = WIDTH,
    strips: int = STRIPS,
) -> Tensor:
    """See `divserve_kernels.guide`.

    Args:
        width, strips: length of a strip, a power of two, and strips of a tile.
    """
    count, vocab = len(streams), logits.shape[1]
    shared = vocab if side is None else min(vocab, side.shape[1])
    # If no stream is in it, any float32 tensor will do: grounding vectors are float32 too.
    side = out if side is None else side
    segments = triton.cdiv(vocab, width * strips)
    padded = triton.next_power_of_2(segments)
    device = logits.device
    found = torch.empty(count, FIELDS.value, padded, device=device)
    statistics = torch.empty(count, len(STATISTICS), device=device)
    # A single row's stride may be anything.
    strides = (tensor.stride(0) if len(tensor) > 1 else 0 for tensor in (logits, side, out))
    lengths = (*strides, vocab, shared)
    unit = UNIT if all(length % UNIT == 0 for length in lengths) else 1
    stride, side_stride, out_stride, *sizes = (length // unit for length in lengths)
    sources = (logits, stride, logits.stride(1), side, side_stride, side.stride(1))
    indices = (streams.primary, streams.guide, streams.third, streams.slot, streams.table)
    numbers = (*sizes, segments, streams.table.shape[1])
    tile = {"width": width, "strips": strips, "padded": padded, "unit": unit, **OPTIONS}
    if _one_launch(segments, device):
        groups = min(count, multiprocessors(device) // segments)
        phases, options = [ALL], {"launch_cooperative_grid": True}
    else:
        groups, phases, options = count, [EXTENTS, COMPARE, WRITE], {}
    for phase in phases:
        launch(
            _segments, (groups * segments,), *sources, out, out_stride, out.stride(1), *indices,
            found, statistics, _semaphores(device), count, *numbers, phase=phase.value,
            nucleus=streams.any_nucleus, **tile, **options,
        )  # fmt: skip
        if phase is EXTENTS and streams.any_nucleus:
            launch(_nuclei, (count,), *sources, *indices, found, *numbers, **tile)
    return statistics


def _one_launch(segments: int, device: torch.device) -> bool:
    """Whether all blocks of a row can run at once, and so meet."""
    if INTERPRETED.value or os.environ.get("DIVSERVE_TRITON") == "phased":
        return False
    return segments <= multiprocessors(device)


def _semaphores(device: torch.device) -> Tensor:
    """``[multiprocessors] int32``, one for each group that may run; they never need a reset."""
    if device.type != "cuda":
        return torch.zeros(1, dtype=torch.int32, device=device)
    if torch.cuda.is_current_stream_capturing():
        # The graph gets its own: memory set to 0 during capture is set to 0 when the graph runs.
        return torch.zeros(multiprocessors(device), dtype=torch.int32, device=device)
    return _semaphores_of(device, torch.cuda.current_stream(device).cuda_stream)


@cache
def _semaphores_of(device: torch.device, _stream: int) -> Tensor:
    """The semaphores of one CUDA stream: launches of two streams may run at the same time."""
    with torch.inference_mode(False):
        return torch.zeros(multiprocessors(device), dtype=torch.int32, device=device)


def variant(
    vocab: int, logits: torch.dtype, side: torch.dtype | None, side_vocab: int, nucleus: bool
) -> dict[str, Any]:
    """What tells the kernels of a server from those of others: arguments of `compile_variant`.

    Args:
        vocab, side_vocab: of the logits and of ``side``.
        logits, side: their dtypes; None if ``side`` has float32 vectors or does not exist.
        nucleus: whether any row keeps a nucleus.
    """
    return {
        "padded": triton.next_power_of_2(triton.cdiv(vocab, WIDTH * STRIPS)),
        "aligned": vocab % UNIT == 0 and (side is None or side_vocab % UNIT == 0),
        "logits": str(logits).removeprefix("torch."),
        "side": str(side or torch.float32).removeprefix("torch."),
        "nucleus": nucleus,
    }


def compile_variant(padded: int, aligned: bool, logits: str, side: str, nucleus: bool) -> None:
    """Makes the launches of a server with such tensors, for `ahead.Job`; see `variant`."""
    vocab = padded * WIDTH * STRIPS - (0 if aligned else 1)
    sources = [
        torch.empty(1, vocab, dtype=getattr(torch, dtype), device="meta")
        for dtype in (logits, side, "float32")
    ]
    index = torch.empty(1, dtype=torch.int64, device="meta")
    table = torch.empty(len(PARAMETERS), 1, device="meta")
    streams = Streams(
        primary=index, guide=index, third=index, table=table, slot=index, forms=frozenset(),
        any_third=True, any_nucleus=nucleus, any_plausibility=True,
    )  # fmt: skip
    guide(sources[0], streams, sources[1], sources[2])
