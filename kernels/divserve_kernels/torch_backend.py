"""The guidance operation in plain torch: the portable back end, for any device and any strides.

All rows go through one sequence of whole-tensor operations. On a CPU, new buffers of ``[G, V]``
cost several times as much as the arithmetic (page faults). So the divergences, which every row
needs, are computed in a workspace that is kept between calls; the rarer forms allocate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from divserve_contract import PARAMETERS, STATISTICS, Form
from divserve_kernels.layout import ABSENT, CLIP, FIRST_SIDE, LOG_CLIP, LOG_ZERO, MIN_ENTROPY
from divserve_kernels.streams import Streams
from divserve_kernels.torch_forms import Gathered, dropped_of, lowest_of, other_forms

__all__ = ["guide"]

BUFFERS = 8
CHUNK = 16
"""Rows per chunk: bounds the workspace (75 MiB at V = 151,936), whatever clients send."""


class Workspace:
    """Memory that is kept between calls; it grows to the size of the largest one."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, groups: int, logits: Tensor) -> Tensor:
        """``[BUFFERS, groups, V] float32`` on the device of ``logits`` ``[R, V]``, not cleared."""
        shape = (BUFFERS, groups, logits.shape[-1])
        size = math.prod(shape)
        if self._memory.numel() < size or self._memory.device != logits.device:
            # A tensor made in inference mode cannot be written to outside it.
            with torch.inference_mode(False):
                self._memory = torch.empty(size, device=logits.device)
        return self._memory[:size].view(shape)


_workspace = Workspace()


def guide(logits: Tensor, streams: Streams, side: Tensor | None, out: Tensor) -> Tensor:
    """See `divserve_kernels.guide`."""
    # A guide row is never a primary, so the chunks do not see each other's results.
    parts = [streams.part(i, i + CHUNK) for i in range(0, len(streams), CHUNK)]
    return torch.cat([_guide(logits, part, side, out) for part in parts])


def _guide(logits: Tensor, streams: Streams, side: Tensor | None, out: Tensor) -> Tensor:
    """At most `CHUNK` rows."""
    p = dict(zip(PARAMETERS, streams.table.index_select(1, streams.slot)[:, :, None], strict=True))
    work = _workspace.take(len(streams), logits)
    gathered = _gathered(logits, streams, side, work[:2])
    z1, z2 = gathered.z1, gathered.z2
    l1 = torch.log_softmax(z1, -1, out=work[2])
    l2 = torch.log_softmax(z2, -1, out=work[3])
    if gathered.masked is not None:
        # A primary without tokens has no distribution; its log-probs would be NaN.
        l1.masked_fill_(gathered.masked, LOG_ZERO)
    l1.clamp_min_(LOG_ZERO)
    l2.clamp_min_(LOG_ZERO)
    found = _statistics(l1, l2, gathered, work[4:])

    weight = torch.maximum(p["alpha"] + p["jsd_scale"] * found["jsd"], p["floor"])
    halvings = p["kl_rate"] * found["kl"]
    halvings += p["entropy_rate"] / found["entropy"].clamp_min(MIN_ENTROPY)
    factor = torch.maximum(torch.exp2(-halvings), p["min_factor"])
    a, b = p["primary_weight"] + weight, p["guide_weight"] - weight
    alpha = -b
    dropped = dropped_of(streams, gathered, p)
    others = other_forms(streams, gathered, p, weight, found["sum_p2"], dropped)

    lowest = z2.amin(-1, keepdim=True) if gathered.masked is None else lowest_of(z2)
    # Neutral weights return z1 bit for bit.
    guided = z1.mul_(a).add_(z2.clamp_min_(lowest).mul_(b))
    if gathered.z3 is not None:
        guided += p["third_weight"] * gathered.z3
    for chosen, values, used, refused in others:
        guided, alpha = torch.where(chosen, values, guided), torch.where(chosen, used, alpha)
        if refused is not None:
            dropped = torch.where(chosen, refused, False if dropped is None else dropped)
    guided.div_(factor)
    kept = gathered.sizes.float()
    if dropped is not None:
        guided.masked_fill_(dropped, -math.inf)
        kept = (~dropped).sum(-1, keepdim=True)

    taken = (streams.primary >= 0)[:, None]
    _write(out, streams.primary, guided, ~taken | (p["form"] == Form.OBSERVE))
    found |= {"alpha": alpha, "factor": factor, "kept": kept}
    return torch.where(taken, torch.cat([found[name] for name in STATISTICS], dim=-1), 0.0)


def _gathered(logits: Tensor, streams: Streams, side: Tensor | None, work: Tensor) -> Gathered:
    """The logits of a chunk's streams, with −inf and lengths in their defined form."""
    vocab = logits.shape[1]
    sizes = torch.full_like(streams.primary, vocab)
    z1 = _gather(logits, streams.primary, work[0])
    # A missing guide is the primary itself.
    second = torch.where(streams.guide == ABSENT, streams.primary, streams.guide)
    z2 = _gather(logits, second, work[1])
    z3 = torch.empty_like(z1) if streams.any_third else None
    z3 = None if z3 is None else _gather(logits, streams.third, z3)
    beyond = None
    if side is not None:
        aided = (streams.guide <= FIRST_SIDE) | (streams.third <= FIRST_SIDE)
        sizes = torch.where(aided, min(side.shape[1], vocab), sizes)
        beyond = torch.arange(vocab, device=logits.device) >= sizes[:, None]
        z1.masked_fill_(beyond, -math.inf)
        _take_side(z2, side, streams.guide)
        z2.masked_fill_(beyond, -math.inf)
        if z3 is not None:
            _take_side(z3, side, streams.third)
            z3.masked_fill_(beyond, -math.inf)
    # A GPU is not asked whether there are masked entries: that would mean waiting for it.
    lowest = torch.minimum(z1.amin(), z2.amin())
    ask = z1.device.type == "cpu"
    masked = None if ask and not bool(torch.isneginf(lowest)) else torch.isneginf(z1)
    if masked is not None:
        z2.masked_fill_(torch.isneginf(z2.amax(-1, keepdim=True)), 0.0)
        if beyond is not None:
            z2.masked_fill_(beyond, -math.inf)
    if z3 is not None:
        z3.masked_fill_(torch.isneginf(z3.amax(-1, keepdim=True)), 0.0)
        z3 = z3.clamp_min_(lowest_of(z3)).masked_fill_((streams.third == ABSENT)[:, None], 0.0)
    return Gathered(z1, z2, z3, sizes[:, None], masked)


def _gather(source: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """Rows of ``source`` ``[R, V]`` as float32; row 0 where an index is not in it."""
    index = index.clamp_min(0)
    if source.dtype == out.dtype:
        return torch.index_select(source, 0, index, out=out)
    return out.copy_(source.index_select(0, index))


def _take_side(z: Tensor, side: Tensor, index: Tensor) -> None:
    """Overwrites the rows of ``z`` ``[G, V]`` whose stream index is a row of ``side``."""
    shared = min(z.shape[1], side.shape[1])
    found = side[:, :shared].index_select(0, (FIRST_SIDE - index).clamp_min(0)).float()
    z[:, :shared] = torch.where((index <= FIRST_SIDE)[:, None], found, z[:, :shared])


def _statistics(l1: Tensor, l2: Tensor, gathered: Gathered, work: Tensor) -> dict[str, Tensor]:
    """Statistics of the distributions, by their names in ``STATISTICS``: ``[G, 1] float32`` each.

    Args:
        l1, l2: ``[G, V] float32`` log-probs, not below `LOG_ZERO`.
        work: ``[4, G, V] float32``, overwritten.
    """
    p1, p2 = torch.exp(l1, out=work[0]), torch.exp(l2, out=work[1])
    entropy = -torch.mul(p1, l1, out=work[2]).sum(-1, keepdim=True)
    squares = torch.mul(p1, p1, out=work[2]).sum(-1, keepdim=True)
    likeliest = l1.amax(-1, keepdim=True).exp()

    log_m = torch.add(p1, p2, out=work[2]).mul_(0.5).log_()
    half1 = torch.sub(l1, log_m, out=work[3]).mul_(p1).sum(-1, keepdim=True)
    half2 = torch.sub(l2, log_m, out=work[2]).mul_(p2).sum(-1, keepdim=True)
    jsd = half1.add_(half2).mul_(0.5)
    # Not the sum of the minima: this is exactly 1 if the two are equal.
    overlap = 1 - p2.sub_(p1).clamp_min_(0).sum(-1, keepdim=True)
    agree = torch.where(overlap.isnan(), overlap, _agree(gathered, work))

    c1 = torch.clamp_min(l1, LOG_CLIP, out=work[2])
    c2 = torch.clamp_min(l2, LOG_CLIP, out=work[3])
    kl = c1.sub_(c2).mul_(p1.clamp_min_(CLIP)).sum(-1, keepdim=True)
    entropy, kl, jsd, overlap = (x.clamp_min_(0) for x in (entropy, kl, jsd, overlap))
    found = {
        "entropy": entropy, "kl": kl, "jsd": jsd, "max_prob": likeliest, "sum_p2": squares,
        "overlap": overlap, "agree": agree,
    }  # fmt: skip
    if gathered.masked is None:
        return found
    dead = gathered.masked.all(-1, keepdim=True)
    return {name: x.masked_fill(dead, 0) for name, x in found.items()}


def _agree(gathered: Gathered, work: Tensor) -> Tensor:
    """Whether some token is the most likely in both streams, ``[G, 1] float32``."""
    z1, z2 = gathered.z1, gathered.z2
    at1 = torch.eq(z1, z1.amax(-1, keepdim=True), out=work[2])
    at2 = torch.eq(z2, z2.amax(-1, keepdim=True), out=work[3])
    return at1.mul_(at2).amax(-1, keepdim=True)


def _write(out: Tensor, primary: Tensor, guided: Tensor, observed: Tensor) -> None:
    """Overwrites the primary rows; observed and absent ones keep their logits."""
    if observed.device.type == "cpu":
        chosen = ~observed[:, 0]
        out[primary[chosen]] = guided[chosen]
        return
    # The device is not asked which rows are absent: these repeat the write of a present one.
    order = torch.arange(len(primary), device=primary.device)
    order = torch.where(primary >= 0, order, primary.argmax())
    index = primary[order].clamp_min(0)
    values = torch.where(observed, out.index_select(0, primary.clamp_min(0)), guided)
    out.index_copy_(0, index, values[order])
