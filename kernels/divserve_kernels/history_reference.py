"""Look-back's distances in float64, one position at a time: the reference for all back ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["distance", "expected_row", "nearest"]


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
    """Reference of `divserve_kernels.nearest`: same arguments, same results, any device."""
    lows, places = [math.inf] * len(rows), [-1] * len(rows)
    for n, row in enumerate(rows.tolist()):
        start, stop = int(starts[n]), int(stops[n])
        if stop - start > most:
            raise ValueError(f"a span of {stop - start} positions, at most {most} were announced")
        for j in range(start, stop):
            kl = distance(states, lse, tables[row], j, mu[n], neg_entropy[n])
            if math.isnan(kl):
                lows[n], places[n] = kl, j
                break
            if kl <= lows[n]:
                lows[n], places[n] = kl, j
    device = states.device
    return torch.tensor(lows, device=device), torch.tensor(places, dtype=torch.int32, device=device)


def distance(
    states: Tensor, lse: Tensor, table: Tensor, j: int, mu: Tensor, neg_entropy: Tensor
) -> float:
    """max(KL(p ‖ p_j), 0); NaN stays.

    Args:
        states, lse: see `divserve_kernels.nearest`.
        table: ``[max_blocks] int32``: the sequence's pages.
        mu: ``[H] float32``.
        neg_entropy: ``[] float32``.
    """
    block = states.shape[1]
    page, offset = int(table[j // block]), j % block
    dot = float(mu.double() @ states[page, offset].double())
    kl = float(neg_entropy) - dot + float(lse[page * block + offset])
    return kl if math.isnan(kl) else max(kl, 0.0)


def expected_row(probs: Tensor, weight: Tensor) -> Tensor:
    """Reference of `divserve_kernels.expected_row`, as ``[N, H] float64``."""
    return probs.double() @ weight[: probs.shape[1]].double()
