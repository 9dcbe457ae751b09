"""The guidance operation in float64, one formula per line: the reference for all back ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from divserve_contract import STATISTICS, Form, Program, Statistics
from divserve_kernels.layout import ABSENT, FIRST_SIDE, LOG_CLIP, MIN_ENTROPY
from divserve_kernels.streams import Streams

__all__ = ["guide"]


def guide(logits: Tensor, streams: Streams, side: Tensor | None, out: Tensor) -> Tensor:
    """Reference of `divserve_kernels.guide`: same arguments, same effect, any device."""
    statistics = torch.zeros(len(streams), len(STATISTICS))
    programs = streams.table[:, streams.slot].T.tolist()
    indices = torch.stack((streams.primary, streams.guide, streams.third), dim=1).tolist()
    for g, (primary, second, third) in enumerate(indices):
        if primary == ABSENT:
            continue
        program = Program(*programs[g])
        z1 = logits[primary].double()
        z2 = z1 if second == ABSENT else _stream(logits, side, second)
        z3 = torch.zeros_like(z1) if third == ABSENT else _stream(logits, side, third)
        shared = min(len(z1), len(z2), len(z3))
        guided, figures = _row(program, z1[:shared], z2[:shared], z3[:shared])
        statistics[g] = torch.tensor(figures)
        if program.form != Form.OBSERVE:
            out[primary] = -math.inf
            out[primary, :shared] = guided.float()
    return statistics.to(logits.device)


def _stream(logits: Tensor, side: Tensor | None, index: int) -> Tensor:
    """The logits that a stream index names, as ``[V] float64``."""
    if index >= 0:
        return logits[index].double()
    if side is None:
        raise ValueError("a stream of the side tensor, and there is none")
    return side[FIRST_SIDE - index].double()


def _row(program: Program, z1: Tensor, z2: Tensor, z3: Tensor) -> tuple[Tensor, Statistics]:
    """Guided logits ``[V] float64`` and the statistics of one program."""
    alive = ~torch.isneginf(z1)
    if not alive.any():
        weight = max(program.alpha, program.floor)
        special = {Form.SWITCH: weight - 1, Form.PROBABILITY: 0.0}
        alpha = special.get(Form(int(program.form)), weight - program.guide_weight)
        nothing = Statistics(*[0.0] * len(STATISTICS))
        return z1, nothing._replace(alpha=alpha, factor=_factor(program, 0, 0))
    z2, z3 = _uniform_if_masked(z2), _finite(_uniform_if_masked(z3))
    l1, l2 = z1.log_softmax(-1), z2.log_softmax(-1)
    p1, p2 = l1.exp(), l2.exp()
    entropy = _positive(-_expect(p1, l1))
    kl = _clipped_kl(l1, l2)
    jsd = _jsd(p1, l1, p2, l2)
    sum_p2 = float((p1 * p1).sum())
    overlap = float(torch.minimum(p1, p2).sum())
    agree = overlap if math.isnan(overlap) else _agree(z1, z2)

    weight = max(program.alpha + program.jsd_scale * jsd, program.floor)
    factor = _factor(program, kl, entropy)
    a, b = program.primary_weight + weight, program.guide_weight - weight
    threshold = max(_shifted(z1.max(), program.log_plausibility), _nucleus(program, z1))
    kept = alive & ~(z1 < threshold)
    used = -b
    if program.form == Form.SWITCH:
        near_top = z1 > _shifted(z1.max(), -program.log_ratio)
        contested = int(near_top.sum()) > 1
        near_bottom = z1 < _shifted(z1[alive].min(), program.log_ratio)
        context = near_bottom | near_top if contested else near_bottom
        l2 = _finite(l2)
        guided = torch.where(context, l1, l2) + weight * (l1 - l2)
        used = weight if contested else weight - 1
    elif program.form == Form.PROBABILITY:
        q = a * p1 + b * p2
        candidates = kept & (p1 >= program.min_prob / len(z1)) & (q > 0)
        contrast = sum_p2 <= program.gate and bool(candidates.any())
        kept = candidates if contrast else kept
        guided = q.log() if contrast else z1
        used = -b if contrast else 0.0
    else:
        guided = a * z1 + b * _finite(z2) + program.third_weight * z3
    guided = torch.where(kept, guided / factor, -math.inf)
    return guided, Statistics(
        entropy=entropy,
        kl=kl,
        jsd=jsd,
        max_prob=float(p1.max()),
        sum_p2=sum_p2,
        alpha=used,
        factor=factor,
        kept=float(kept.sum()),
        overlap=overlap,
        agree=agree,
    )


def _factor(program: Program, kl: float, entropy: float) -> float:
    """The factor that the row's temperature is multiplied by."""
    halvings = program.kl_rate * kl + program.entropy_rate / max(entropy, MIN_ENTROPY)
    return float(max(2.0**-halvings, program.min_factor))


def _uniform_if_masked(z: Tensor) -> Tensor:
    """A stream that is −inf everywhere counts as uniform."""
    return torch.zeros_like(z) if torch.isneginf(z).all() else z


def _finite(z: Tensor) -> Tensor:
    """−inf as the smallest finite entry of the row."""
    return z.clamp_min(z[~torch.isneginf(z)].min())


def _positive(x: float) -> float:
    """Removes rounding errors below zero; NaN stays."""
    return x if math.isnan(x) else max(0.0, x)


def _shifted(z: Tensor, distance: float) -> float:
    """z + distance rounded as in float32, so that all back ends have the same lines."""
    return float(z.float() + torch.tensor(distance, dtype=torch.float32))


def _nucleus(program: Program, z: Tensor) -> float:
    """Smallest logit of the smallest set of most likely tokens with a mass of at least top_p."""
    if program.top_p >= 1:
        return -math.inf
    values = z.sort(descending=True).values
    mass = (values / program.top_p_temperature).softmax(-1).cumsum(-1)
    enough = int((mass < program.top_p).sum())
    return float(values[min(enough, len(values) - 1)])


def _expect(p: Tensor, x: Tensor) -> float:
    """Σ p·x over ``[V] float64`` with 0·(−inf) = 0."""
    return float((p * x)[p != 0].sum())


def _clipped_kl(l1: Tensor, l2: Tensor) -> float:
    """max(0, KL(p1‖p2)) in nats, both clipped at 1e-7 (Chang et al. 2023, their code)."""
    c1, c2 = l1.clamp_min(LOG_CLIP), l2.clamp_min(LOG_CLIP)
    return _positive(float((c1.exp() * (c1 - c2)).sum()))


def _jsd(p1: Tensor, l1: Tensor, p2: Tensor, l2: Tensor) -> float:
    """JSD(p1, p2) in nats, in [0, ln 2]."""
    log_m = ((p1 + p2) / 2).log()
    return _positive((_expect(p1, l1 - log_m) + _expect(p2, l2 - log_m)) / 2)


def _agree(z1: Tensor, z2: Tensor) -> float:
    """1 if some token is the most likely in both streams, else 0."""
    return float(((z1 == z1.max()) & (z2 == z2.max())).any())
