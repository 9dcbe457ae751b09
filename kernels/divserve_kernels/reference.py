"""The guidance operation in float64, one formula a line: what every back end is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from divserve_kernels.layout import LOG_CLIP
from divserve_kernels.rows import Rows

__all__ = ["guide"]


def guide(logits: Tensor, rows: Rows) -> Tensor:
    """Reference of `divserve_kernels.guide`; same arguments, same in-place effect, any device.

    Args:
        logits: ``[R, V] float32``; the primary rows are overwritten.
        rows: which rows form pairs, and their parameters.

    Returns:
        ``[G, len(STATISTICS)] float32``.
    """
    statistics = []
    pairs = zip(rows.primary.tolist(), rows.guide.tolist(), rows.parameters.tolist(), strict=True)
    sources = logits.double()
    for primary, second, (alpha, jsd_scale, floor, kl_rate, min_factor) in pairs:
        z1, z2 = sources[primary], sources[second]
        if torch.isneginf(z2).all():
            z2 = torch.zeros_like(z2)
        l1, l2 = z1.log_softmax(-1), z2.log_softmax(-1)
        p1, p2 = l1.exp(), l2.exp()
        entropy = -_expect(p1, l1)
        kl = _clipped_kl(l1, l2)
        jsd = _jsd(p1, l1, p2, l2)
        weight = max(alpha + jsd_scale * jsd, floor)
        factor = max(2.0 ** (-kl_rate * kl), min_factor)
        smallest = z2[~torch.isneginf(z2)].min()
        contrast = (1 + weight) * z1 - weight * z2.clamp_min(smallest)
        contrast[torch.isneginf(z1)] = -math.inf
        logits[primary] = (contrast / factor).float()
        statistics.append([entropy, kl, jsd, weight, factor])
    return torch.tensor(statistics, dtype=torch.float32, device=logits.device)


def _expect(p: Tensor, x: Tensor) -> float:
    """Σ p·x over ``[V] float64`` with 0·(−inf) = 0."""
    return float((p * x)[p > 0].sum())


def _clipped_kl(l1: Tensor, l2: Tensor) -> float:
    """max(0, KL(p1‖p2)) in nats with both distributions clipped at 1e-7 (algorithms.md §1b)."""
    c1, c2 = l1.clamp_min(LOG_CLIP), l2.clamp_min(LOG_CLIP)
    return max(0.0, float((c1.exp() * (c1 - c2)).sum()))


def _jsd(p1: Tensor, l1: Tensor, p2: Tensor, l2: Tensor) -> float:
    """JSD(p1, p2) in nats, in [0, ln 2]."""
    log_m = ((p1 + p2) / 2).log()
    return max(0.0, (_expect(p1, l1 - log_m) + _expect(p2, l2 - log_m)) / 2)
