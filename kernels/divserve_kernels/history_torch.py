"""Look-back's distances in plain torch: the portable back end, for any device and any strides."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PAIRS", "nearest"]

CHUNK = 1024
"""Most positions of a row that are compared at once."""
PAIRS = 16384
"""Most states that are gathered at once: 384 MiB of bfloat16 and float32 at H = 4096."""


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
        # Positions outside the range do not count: position 0 is read in their place.
        j = j.where(inside, 0)
        page = tables[rows, j // block].long().where(inside, 0)
        offset = (j % block).long()
        dots = torch.bmm(states[page, offset].float(), mu[:, :, None])[:, :, 0]
        kl = (lse[page * block + offset] - dots + neg_entropy[:, None]).clamp_min(0)
        kl = kl.where(inside, math.inf)
        # The minimum of this chunk, then of all so far; minima keep NaN.
        lowest = kl.amin(1)
        latest = j.where(inside & (kl == lowest[:, None]), -1).amax(1)
        tied = torch.maximum(latest, place)
        place = torch.where(lowest < low, latest, tied.where(lowest == low, place))
        low = torch.minimum(low, lowest)
    return low, place
