"""The likeliest tokens, one row at a time: the reference for all back ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["likeliest"]


def likeliest(logits: Tensor, wanted: Tensor, k: int) -> Tensor:
    """Reference of `divserve_kernels.likeliest`: same arguments, same results, any device."""
    found = [
        _best(row, k) if needed else [0] * k
        for row, needed in zip(logits.tolist(), wanted.tolist(), strict=True)
    ]
    return torch.tensor(found, dtype=torch.int64, device=logits.device).view(len(logits), k)


def _best(row: list[float], k: int) -> list[int]:
    def rank(token: int) -> tuple[bool, float, int]:
        broken = math.isnan(row[token])
        return not broken, 0.0 if broken else -row[token], token

    return sorted(range(len(row)), key=rank)[:k]
