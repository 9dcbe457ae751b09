"""The likeliest tokens for NVIDIA GPUs, in Triton: two launches for all rows of a step.

Programs of rows that need none return at once. The others find the best of their tile, and one
program per row merges them. A token competes as an integer, its *key*: the logit's order in the
upper half, the id, counting down, in the lower one. Keys are distinct, so the result does not
depend on the order of the programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from divserve_kernels.candidates import MOST
from divserve_kernels.triton_launch import launch

__all__ = ["compile_variant", "likeliest"]

TILE = 8192
"""Logits that a program ranks, in its registers."""
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
LOW = tl.constexpr(0x7FFF_FFFF)
"""Bits of a token id; also those of a float32 but its sign."""
NAN_BITS = tl.constexpr(0x7FC0_0000)
NOTHING = tl.constexpr(-(2**63))
"""Smaller than every key."""


@triton.jit
def _keys(z, ids):  # type: ignore[no-untyped-def]
    """Keys ``[n] int64`` of logits ``[n] float32`` and token ids ``[n] int32``."""
    # One kind of NaN, and one zero.
    bits = tl.where(z == 0, 0.0, z).to(tl.int32, bitcast=True)
    bits = tl.where(z != z, NAN_BITS, bits)
    order = bits ^ ((bits >> 31) & LOW)
    return (order.to(tl.int64) << 32) | (ids ^ LOW).to(tl.int64)


@triton.jit
def _without(keys, key):  # type: ignore[no-untyped-def]
    return tl.where(keys == key, NOTHING, keys)


# Numbers that differ between steps or layouts must not each cause a new compilation.
@triton.jit(do_not_specialize=["stride", "vocab", "k"], do_not_specialize_on_alignment=["wanted"])
def _rank_tile(  # type: ignore[no-untyped-def]
    logits,  # [N, vocab] float32
    stride, vocab,
    wanted,  # [N] bool
    best,  # [N, tiles, k] int64: the result
    k,
    tile: tl.constexpr,
):  # fmt: skip
    """The keys of the best of a tile of row ``n``, the largest first."""
    n, part = tl.program_id(0), tl.program_id(1)
    if tl.load(wanted + n) != 0:
        ids = part * tile + tl.arange(0, tile)
        # 64 bits: logits may have more numbers than 32 bits can index.
        row = logits + n.to(tl.int64) * stride
        keys = _keys(tl.load(row + ids, mask=ids < vocab, other=0.0), ids)
        keys = tl.where(ids < vocab, keys, NOTHING)
        out = best + (n * tl.num_programs(1) + part) * k
        for i in range(k):
            key = tl.max(keys, 0)
            tl.store(out + i, key)
            keys = _without(keys, key)


@triton.jit(do_not_specialize=["k", "count"], do_not_specialize_on_alignment=["wanted"])
def _rank_row(  # type: ignore[no-untyped-def]
    best,  # [N, count] int64
    wanted,  # [N] bool
    found,  # [N, k] int64, written
    k, count,
    padded: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    """The ids of the best of all tiles of row ``n``; zeros if it needs none."""
    n = tl.program_id(0)
    if tl.load(wanted + n) != 0:
        lane = tl.arange(0, padded)
        keys = tl.load(best + n * count + lane, mask=lane < count, other=NOTHING)
        for i in range(k):
            key = tl.max(keys, 0)
            tl.store(found + n * k + i, (key & LOW) ^ LOW)
            keys = _without(keys, key)
    else:
        place = tl.arange(0, most)
        tl.store(found + n * k + place, tl.zeros([most], tl.int64), mask=place < k)


def likeliest(logits: Tensor, wanted: Tensor, k: int, tile: int = TILE) -> Tensor:
    """See `divserve_kernels.likeliest`.

    Args:
        tile: logits per program, a power of two.
    """
    count, vocab = logits.shape
    tiles = triton.cdiv(vocab, tile)
    best = torch.empty(count, tiles * k, dtype=torch.int64, device=logits.device)
    found = torch.empty(count, k, dtype=torch.int64, device=logits.device)
    rows = (logits, logits.stride(0), vocab, wanted)
    launch(_rank_tile, (count, tiles), *rows, best, k, tile=tile, **OPTIONS)
    padded = triton.next_power_of_2(tiles * MOST)
    merged = (best, wanted, found, k, tiles * k)
    launch(_rank_row, (count,), *merged, padded=padded, most=MOST, **OPTIONS)
    return found


def compile_variant(vocab: int) -> None:
    """Makes the launches of a vocabulary, for `ahead.Job`."""
    logits = torch.empty(1, vocab, device="meta")
    likeliest(logits, torch.empty(1, dtype=torch.bool, device="meta"), 1)
