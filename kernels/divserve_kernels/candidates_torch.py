"""The likeliest tokens in plain torch: the portable back end, for any device and any strides."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["likeliest", "of_all"]

LOW = 0x7FFF_FFFF
"""Bits of a token id; also those of a float32 but its sign."""


def likeliest(logits: Tensor, wanted: Tensor, k: int) -> Tensor:
    """See `divserve_kernels.likeliest`."""
    if logits.device.type != "cpu":
        # Which rows are wanted is not asked: that would mean waiting for the device.
        return of_all(logits, k).where(wanted[:, None], 0)
    found = torch.zeros(len(logits), k, dtype=torch.int64)
    found[wanted] = of_all(logits[wanted], k)
    return found


def of_all(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens of all rows, ``[N, k] int64``.

    They are the largest of integers that have the order of the logits first, then that of the ids
    downwards.
    """
    # One kind of NaN, and one zero.
    bits = torch.where(logits.isnan(), math.nan, logits + 0.0).view(torch.int32)
    order = bits ^ ((bits >> 31) & LOW)
    ids = torch.arange(logits.shape[1], device=logits.device)
    keys = (order.long() << 32) | (LOW - ids)
    return LOW - (keys.topk(k).values & LOW)
