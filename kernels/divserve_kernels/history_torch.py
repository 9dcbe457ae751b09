"""Look-back's distances in plain torch: the portable back end, for any device and any strides."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PAIRS", "nearest"]

CHUNK = 1024
"""Positions of a row that are compared at once, at most."""
PAIRS = 16384
"""States that are gathered at once, at most: 384 MiB of bfloat16 and float32 at H = 4096."""


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
    block, device, rows = states.shape[1], states.device, rows[:, None]
    low = torch.full((len(rows),), math.inf, device=device)
    place = torch.full((len(rows),), -1, dtype=torch.int32, device=device)
    chunk = min(CHUNK, max(PAIRS // len(rows), 1))
    for first in range(0, most, chunk):
        steps = torch.arange(first, min(first + chunk, most), dtype=torch.int32, device=device)
        j = starts[:, None] + steps
        inside = j < stops[:, None]
        # What lies outside stands for nothing: position 0 of page 0 is read in its stead.
        j = j.where(inside, 0)
        page = tables[rows, j // block].long().where(inside, 0)
        offset = (j % block).long()
        dots = torch.bmm(states[page, offset].float(), mu[:, :, None])[:, :, 0]
        kl = (lse[page * block + offset] - dots + neg_entropy[:, None]).clamp_min(0)
        kl = kl.where(inside, math.inf)
        # Of a chunk, then of all so far; minima keep NaN.
        lowest = kl.amin(1)
        latest = j.where(inside & (kl == lowest[:, None]), -1).amax(1)
        tied = torch.maximum(latest, place)
        place = torch.where(lowest < low, latest, tied.where(lowest == low, place))
        low = torch.minimum(low, lowest)
    return low, place
