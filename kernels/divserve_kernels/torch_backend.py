"""The guidance operation in plain torch: the portable back end, and the default on CPU.

All pairs go through one sequence of whole-tensor operations whatever their methods. On a CPU fresh
buffers of ``[G, V]`` cost several times the arithmetic (page faults), so everything is written into
a workspace that is kept between steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from divserve_kernels.layout import LOG_CLIP
from divserve_kernels.rows import Rows

__all__ = ["guide"]

LOG_ZERO = -80.0
"""Stands for log 0: finite, so that no 0·∞ arises; lower ones have denormal, slow exponentials."""
BUFFERS = 8
CHUNK = 16
"""Pairs worked on at once: bounds the workspace (75 MiB at V = 151,936), whatever clients send."""


class Workspace:
    """Memory that outlives a step; it grows to the largest step seen."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, groups: int, logits: Tensor) -> Tensor:
        """``[BUFFERS, groups, V] float32`` on the device of ``logits`` ``[R, V]``, not cleared."""
        shape = (BUFFERS, groups, logits.shape[-1])
        size = math.prod(shape)
        if self._memory.numel() < size or self._memory.device != logits.device:
            # A tensor made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                self._memory = torch.empty(size, device=logits.device)
        return self._memory[:size].view(shape)


_workspace = Workspace()


def guide(logits: Tensor, rows: Rows) -> Tensor:
    """See `divserve_kernels.guide`."""
    pairs = rows.primary.shape[0]
    if pairs <= CHUNK:
        return _guide(logits, rows)
    # A guide row may be the primary of no pair, so the chunks do not see each other's results.
    return torch.cat([_guide(logits, rows.part(i, i + CHUNK)) for i in range(0, pairs, CHUNK)])


def _guide(logits: Tensor, rows: Rows) -> Tensor:
    """At most `CHUNK` pairs."""
    work = _workspace.take(rows.primary.shape[0], logits)
    z1 = torch.index_select(logits, 0, rows.primary, out=work[0])
    z2 = torch.index_select(logits, 0, rows.guide, out=work[1])
    alpha, jsd_scale, floor, kl_rate, min_factor = rows.parameters.unbind(-1)

    lowest = z2.amin(-1, keepdim=True)
    # A GPU is not asked whether there are masked entries: the answer would have to be waited for.
    masked = z1.is_cuda or bool(torch.isneginf(torch.minimum(lowest, z1.amin())).any())
    blocked = torch.isneginf(z1) if masked else None
    if masked:
        lowest = torch.where(torch.isneginf(z2), math.inf, z2).amin(-1, keepdim=True)
        empty = torch.isposinf(lowest)
        z2.masked_fill_(empty, 0.0)
        lowest.masked_fill_(empty, 0.0)
    entropy, kl, jsd = _divergences(z1, z2, work[2:])

    weight = torch.maximum(alpha + jsd_scale * jsd, floor)
    factor = torch.maximum(torch.exp2(-kl_rate * kl), min_factor)

    # z1·(1+w) − w·z2 with w = 0 must give back z1 bit for bit, and z1 = −inf must stay −inf.
    z2.clamp_min_(lowest).mul_(weight[:, None])
    z1.mul_((1 + weight)[:, None]).sub_(z2).div_(factor[:, None])
    if blocked is not None:
        z1.masked_fill_(blocked, -math.inf)
    logits.index_copy_(0, rows.primary, z1)
    return torch.stack((entropy, kl, jsd, weight, factor), dim=-1)


def _divergences(z1: Tensor, z2: Tensor, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy of p1, clipped KL(p1‖p2) and JSD(p1, p2), each ``[G] float32`` in nats.

    Args:
        z1, z2: ``[G, V] float32`` raw logits.
        work: ``[6, G, V] float32``, overwritten.
    """
    l1 = torch.log_softmax(z1, -1, out=work[0]).clamp_min_(LOG_ZERO)
    l2 = torch.log_softmax(z2, -1, out=work[1]).clamp_min_(LOG_ZERO)
    p1, p2 = torch.exp(l1, out=work[2]), torch.exp(l2, out=work[3])
    entropy = -torch.mul(p1, l1, out=work[4]).sum(-1)

    log_m = torch.add(p1, p2, out=work[4]).mul_(0.5).log_()
    half1 = torch.sub(l1, log_m, out=work[5]).mul_(p1).sum(-1)
    half2 = torch.sub(l2, log_m, out=work[4]).mul_(p2).sum(-1)
    jsd = half1.add_(half2).mul_(0.5)

    l1.clamp_min_(LOG_CLIP)
    l2.clamp_min_(LOG_CLIP)
    kl = l1.sub_(l2).mul_(p1.clamp_min_(math.exp(LOG_CLIP))).sum(-1)
    return entropy, kl.clamp_min_(0), jsd.clamp_min_(0)
