"""The likeliest tokens and their log-probs in float64, one row at a time: the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["top_logprobs"]


def top_logprobs(logits: Tensor, rows: Tensor, k: int) -> Tensor:
    """Reference of `divserve_kernels.top_logprobs`: same arguments, float64, on the CPU."""
    found = [_of_row(logits[row].tolist(), k) for row in rows.tolist()]
    return torch.tensor(found, dtype=torch.float64).view(len(rows), 2, k)


def _of_row(row: list[float], k: int) -> tuple[list[float], list[float]]:
    largest = max(row)
    if largest == -math.inf:
        return [float(token) for token in range(k)], [math.nan] * k
    total = largest + math.log(math.fsum(math.exp(z - largest) for z in row))
    best = sorted(range(len(row)), key=lambda token: (-row[token], token))[:k]
    return [float(token) for token in best], [row[token] - total for token in best]
