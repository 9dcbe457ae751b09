"""The portable back end's rarer forms, and the choice of tokens to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from divserve_contract import Form
from divserve_kernels.streams import Streams

__all__ = ["Gathered", "dropped_of", "lowest_of", "other_forms"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """The float32 logits of a chunk of rows; entries beyond the shared vocabulary are −inf."""

    z1: Tensor
    """``[G, V] float32``: primaries."""
    z2: Tensor
    """``[G, V] float32``: guides; zeros for a guide that was masked everywhere."""
    z3: Tensor | None
    """``[G, V] float32``: third streams without −inf; None if no row gives one a weight."""
    sizes: Tensor
    """``[G, 1] int64``: length of the shared vocabulary."""
    masked: Tensor | None
    """``[G, V] bool``: z1 = −inf; None when no stream holds any."""


def dropped_of(streams: Streams, gathered: Gathered, p: dict[str, Tensor]) -> Tensor | None:
    """``[G, V] bool``: tokens that are not kept; None when all are."""
    if not (streams.any_plausibility or streams.any_nucleus):
        return gathered.masked
    z1 = gathered.z1
    top = z1.amax(-1, keepdim=True)
    line = top + p["log_plausibility"]
    if streams.any_nucleus:
        nucleus = _nucleus(z1, top, p["top_p"], p["top_p_temperature"])
        line = torch.maximum(line, nucleus)
    return z1 < line if gathered.masked is None else (z1 < line) | gathered.masked


Choice = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Rows ``[G, 1] bool``, their guided logits ``[G, V]``, weights ``[G, 1]`` and dropped tokens."""


def other_forms(
    streams: Streams, gathered: Gathered, p: dict[str, Tensor], weight: Tensor, squares: Tensor,
    dropped: Tensor | None,
) -> list[Choice]:  # fmt: skip
    """Results for the rows of rarer forms, from the logits before they are combined."""
    found: list[Choice] = []
    if Form.SWITCH in streams.forms:
        found.append((p["form"] == Form.SWITCH, *_switch(gathered, p["log_ratio"], weight), None))
    if Form.PROBABILITY in streams.forms:
        p1, p2 = gathered.z1.softmax(-1), gathered.z2.softmax(-1)
        q = (p["primary_weight"] + weight) * p1 + (p["guide_weight"] - weight) * p2
        refused = (p1 < p["min_prob"] / gathered.sizes) | (q <= 0)
        refused = refused if dropped is None else refused | dropped
        mixes = p["form"] == Form.PROBABILITY
        contrast = mixes & (squares <= p["gate"]) & ~refused.all(-1, keepdim=True)
        zero = torch.zeros_like(weight)
        found.append((mixes, gathered.z1.clone(), zero, dropped))
        found.append((contrast, q.log(), weight - p["guide_weight"], refused))
    return found


def lowest_of(z: Tensor) -> Tensor:
    """Smallest finite entry ``[G, 1]``: replaces −inf beside a finite z1."""
    return torch.where(torch.isneginf(z), math.inf, z).amin(-1, keepdim=True)


def _nucleus(z: Tensor, top: Tensor, top_p: Tensor, temperature: Tensor) -> Tensor:
    """Smallest logit ``[G, 1]`` of the smallest set of most likely tokens with mass top_p."""
    values = z.sort(dim=-1, descending=True).values
    mass = ((values - top) / temperature).double().exp().cumsum(-1)
    enough = (mass < top_p * mass[:, -1:]).sum(-1, keepdim=True)
    line = values.gather(-1, enough.clamp_max(z.shape[1] - 1))
    return torch.where(top_p < 1, line, -math.inf)


def _switch(gathered: Gathered, log_ratio: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """COIECD's choice per token ``[G, V]``, the contrast of the most likely tokens ``[G, 1]``."""
    z1 = gathered.z1
    near_top = z1 > z1.amax(-1, keepdim=True) - log_ratio
    contested = near_top.sum(-1, keepdim=True) > 1
    context = (z1 < lowest_of(z1) + log_ratio) | (near_top & contested)
    l1 = z1.log_softmax(-1)
    l2 = gathered.z2.log_softmax(-1)
    l2.clamp_min_(lowest_of(l2))
    guided = torch.where(context, l1, l2) + weight * (l1 - l2)
    return guided, torch.where(contested, weight, weight - 1)
