"""Look-back's distances for NVIDIA GPUs, in Triton: two launches for all rows of a step.

Each row's range is cut into tiles of positions that its programs take in turns; a second, small
kernel merges what they found. Minima do not depend on their order, so neither does the result.
Comparisons are written so that NaN passes through them; a GPU's minimum would drop it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from divserve_kernels.triton_launch import launch
from divserve_kernels.triton_math import INFINITY

__all__ = ["compile_variant", "nearest"]

TILE = 16
"""Positions that a program compares at once."""
WIDTH = 256
"""Numbers of each position that it reads at once: 32 sums in each thread's registers."""
PROGRAMS = 1024
"""About how many programs run for all rows: a few per multiprocessor; also the most for one row."""


@triton.jit
def _least(low, place):  # type: ignore[no-untyped-def]
    """(smallest KL, its latest position) of ``[n] float32`` and ``[n] int32``."""
    broken = tl.max((low != low).to(tl.int32), 0)
    lowest = tl.min(tl.where(low != low, INFINITY, low), 0)
    latest = tl.max(tl.where(low == lowest, place, -1), 0)
    # Not a constant of the module: Triton would find that it has changed, for it is not equal to
    # itself.
    return tl.where(broken != 0, float("nan"), lowest), latest


# Numbers that change from step to step must not each cause a new compilation.
@triton.jit(
    do_not_specialize=["splits", "table_stride"],
    do_not_specialize_on_alignment=["tables", "rows", "starts", "stops", "neg_entropy"],
)
def _search(  # type: ignore[no-untyped-def]
    states,  # [blocks, block, hidden] float32, bfloat16 or float16
    page_stride, stride,
    lse,  # [blocks * block + 1] float32
    tables,  # [sequences, max_blocks] int32
    table_stride,
    rows,  # [N] int64
    starts, stops,  # [N] int32
    mu,  # [N, hidden] float32
    mu_stride,
    neg_entropy,  # [N] float32
    lows,  # [N, splits] float32: the result
    places,  # [N, splits] int32
    splits,
    block: tl.constexpr, hidden: tl.constexpr, tile: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """The nearest among every ``splits``-th tile of row ``n``."""
    n, split = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(starts + n), tl.load(stops + n)
    table = tables + tl.load(rows + n) * table_stride
    mean, constant = mu + n * mu_stride, tl.load(neg_entropy + n)
    lane, column = tl.arange(0, tile), tl.arange(0, width)
    low = tl.full([tile], INFINITY, tl.float32)
    place = tl.full([tile], -1, tl.int32)
    for first in range(start + split * tile, stop, splits * tile):
        j = first + lane
        inside = j < stop
        # 64 bits: a store may have more numbers than 32 bits can index.
        page = tl.load(table + j // block, mask=inside, other=0).to(tl.int64)
        offset = j % block
        state = states + (page * page_stride + offset * stride)
        sums = tl.zeros([tile, width], tl.float32)
        for at in range(0, hidden, width):
            within = at + column < hidden
            mask = inside[:, None] & within[None, :]
            h = tl.load(state[:, None] + (at + column)[None, :], mask=mask, other=0.0)
            m = tl.load(mean + at + column, mask=within, other=0.0)
            sums += h.to(tl.float32) * m[None, :]
        total = tl.load(lse + page * block + offset, mask=inside, other=0.0)
        kl = total - tl.sum(sums, 1) + constant
        kl = tl.where(inside, tl.where(kl < 0, 0.0, kl), INFINITY)
        # Later tiles win ties; once NaN, it stays NaN.
        keep = (low < kl) | (low != low) | ~inside
        low, place = tl.where(keep, low, kl), tl.where(keep, place, j)
    lowest, latest = _least(low, place)
    tl.store(lows + n * splits + split, lowest)
    tl.store(places + n * splits + split, latest)


@triton.jit(do_not_specialize=["splits"])
def _merge(  # type: ignore[no-untyped-def]
    lows,  # [N, splits] float32
    places,  # [N, splits] int32
    splits,
    kl,  # [N] float32, written
    position,  # [N] int32, written
    padded: tl.constexpr,
):  # fmt: skip
    """The nearest of all splits of row ``n``."""
    n, split = tl.program_id(0), tl.arange(0, padded)
    low = tl.load(lows + n * splits + split, mask=split < splits, other=INFINITY)
    place = tl.load(places + n * splits + split, mask=split < splits, other=-1)
    lowest, latest = _least(low, place)
    tl.store(kl + n, lowest)
    tl.store(position + n, latest)


def nearest(
    states: Tensor,
    lse: Tensor,
    tables: Tensor,
    rows: Tensor,
    starts: Tensor,
    stops: Tensor,
    mu: Tensor,
    neg_entropy: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """See `divserve_kernels.nearest`."""
    rows, starts, stops, neg_entropy = (t.contiguous() for t in (rows, starts, stops, neg_entropy))
    count, hidden, device = len(rows), states.shape[2], states.device
    splits = max(1, min(triton.cdiv(most, TILE), PROGRAMS // count))
    lows = torch.empty(count, splits, device=device)
    places = torch.empty(count, splits, dtype=torch.int32, device=device)
    kl = torch.empty(count, device=device)
    position = torch.empty(count, dtype=torch.int32, device=device)
    launch(
        _search, (count, splits), states, *states.stride()[:2], lse, tables, tables.stride(0), rows,
        starts, stops, mu, mu.stride(0), neg_entropy, lows, places, splits, block=states.shape[1],
        hidden=hidden, tile=TILE, width=min(WIDTH, triton.next_power_of_2(hidden)),
        enable_fp_fusion=True,
    )  # fmt: skip
    launch(
        _merge, (count,), lows, places, splits, kl, position, padded=PROGRAMS, enable_fp_fusion=True
    )
    return kl, position


def compile_variant(block: int, hidden: int, dtype: str) -> None:
    """Makes the launches of a store of hidden states, for `ahead.Job`."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    states = empty(2, block, hidden, dtype=getattr(torch, dtype))
    tables, ends = empty(1, 1, dtype=torch.int32), empty(1, dtype=torch.int32)
    rows = empty(1, dtype=torch.int64)
    nearest(states, empty(2 * block + 1), tables, rows, ends, ends, empty(1, hidden), empty(1), 1)
