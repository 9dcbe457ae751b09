"""The guidance operation in plain torch: the portable back end, and the default on CPU.

All pairs go through one sequence of whole-tensor operations whatever their methods; nothing here
reads a value back to the host. Work is done in place where it can be: fresh V-sized buffers cost
more than the arithmetic on a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vecdot

from divserve_kernels.layout import LOG_CLIP
from divserve_kernels.rows import Rows

__all__ = ["guide"]

LOG_ZERO = -1e4
"""Stands for log 0: finite, so that 0·log 0 is 0, and its exponential is exactly 0."""


def guide(logits: Tensor, rows: Rows) -> Tensor:
    """See `divserve_kernels.guide`."""
    z1, z2 = logits[rows.primary], logits[rows.guide]
    alpha, jsd_scale, floor, kl_rate, min_factor = rows.parameters.unbind(-1)

    smallest = torch.where(torch.isneginf(z2), math.inf, z2).amin(-1, keepdim=True)
    empty = torch.isposinf(smallest)
    z2.masked_fill_(empty, 0.0)
    entropy, kl, jsd = _divergences(z1, z2)
    z2.clamp_min_(smallest.masked_fill_(empty, 0.0))

    weight = torch.maximum(alpha + jsd_scale * jsd, floor)
    factor = torch.maximum(torch.exp2(-kl_rate * kl), min_factor)

    # z1·(1+w) − w·z2 with w = 0 must give back z1 bit for bit, and z1 = −inf must stay −inf.
    z2.mul_(weight[:, None])
    contrast = (z1 * (1 + weight)[:, None]).sub_(z2).div_(factor[:, None])
    contrast.masked_fill_(torch.isneginf(z1), -math.inf)
    logits.index_copy_(0, rows.primary, contrast)
    return torch.stack((entropy, kl, jsd, weight, factor), dim=-1)


def _divergences(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy of p1, clipped KL(p1‖p2) and JSD(p1, p2), each ``[G] float32`` in nats.

    Args:
        z1, z2: ``[G, V] float32`` raw logits.
    """
    l1 = z1.log_softmax(-1).clamp_min_(LOG_ZERO)
    l2 = z2.log_softmax(-1).clamp_min_(LOG_ZERO)
    p1, p2 = l1.exp(), l2.exp()
    entropy = -vecdot(p1, l1)

    log_m = torch.add(p1, p2).mul_(0.5).clamp_min_(torch.finfo(torch.float32).tiny).log_()
    jsd = vecdot(p1, l1 - log_m).add_(vecdot(p2, torch.sub(l2, log_m, out=log_m))).mul_(0.5)

    l1.clamp_min_(LOG_CLIP)
    l2.clamp_min_(LOG_CLIP)
    kl = vecdot(p1.clamp_min_(math.exp(LOG_CLIP)), l1.sub_(l2))
    return entropy, kl.clamp_min_(0), jsd.clamp_min_(0)
