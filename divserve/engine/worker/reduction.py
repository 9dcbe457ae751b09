"""What is kept of the distributions at the positions of a scored text: a few numbers of each.

All functions work on slices of positions, so that no tensor of all tokens and all of the vocabulary
is ever made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from divserve.decoding import EXCLUDED, FIGURES

__all__ = ["MOST_ENTRIES", "figures", "likeliest", "log_probs", "of_ids", "slice_length"]

MOST_ENTRIES = 1 << 22
"""Logits of one slice of one stream: 16 MiB in float32, and four to six times that in all."""
MOST_POSITIONS = 64


def slice_length(vocab: int) -> int:
    """Positions whose logits are in memory at a time."""
    return max(1, min(MOST_POSITIONS, MOST_ENTRIES // vocab))


def log_probs(logits: Tensor) -> Tensor:
    """``[S, V] float32`` of logits of any dtype; at least `EXCLUDED`, so that 0·log 0 is 0."""
    return logits.float().log_softmax(-1).clamp_min_(EXCLUDED)


def figures(
    tokens: Tensor, chosen: Tensor, own: Tensor, guide: Tensor | None, reference: Tensor | None
) -> Tensor:
    """``[S, len(FIGURES)] float32`` of a slice; see `divserve.decoding.Figures`.

    Args:
        tokens: ``[S] int64``: the scored tokens.
        chosen: ``[S, V]`` log-probs of the program's distribution, or ``own`` itself.
        own: ``[S, V]`` log-probs of the served model.
        guide: ``[S, V]`` log-probs of its guide, if there is one.
        reference: ``[S, V']`` log-probs of the first amateur, if there is one; V' ≤ V.
    """
    nothing = torch.full((len(tokens),), math.nan, device=own.device)
    found: dict[str, Tensor] = dict.fromkeys(FIGURES, nothing)
    logprob = _of(chosen, tokens)
    probs = chosen.exp()
    entropy = -(probs * chosen).sum(-1)
    found |= {
        "logprob": logprob,
        "rank": (chosen > logprob[:, None]).sum(-1).float() + 1,
        "entropy": entropy,
        "varentropy": probs.mul_((chosen + entropy[:, None]).square_()).sum(-1),
        "own_logprob": _of(own, tokens),
    }
    if guide is not None:
        kl, jsd = _divergences(own, guide)
        found |= {"guide_logprob": _of(guide, tokens), "kl": kl, "jsd": jsd}
    if reference is not None:
        found |= _against(tokens, own, reference)
    return torch.stack([found[name] for name in FIGURES], dim=1)


def likeliest(chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids ``[S, count] int32`` and log-probs ``[S, count] float32`` of the likeliest tokens."""
    values, ids = chosen.topk(count, dim=-1)
    return ids.int(), values


def of_ids(chosen: Tensor, ids: Tensor) -> Tensor:
    """Log-probs ``[S, M] float32`` of the tokens ``ids`` ``[S, M] int64``."""
    return chosen.gather(1, ids)


def _of(distribution: Tensor, tokens: Tensor) -> Tensor:
    return distribution.gather(1, tokens[:, None]).squeeze(1)


def _divergences(own: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
    """KL(own‖guide) and JSD of log-probs ``[S, V]``, each ``[S]``; rounding below 0 is removed."""
    first, second = own.exp(), guide.exp()
    kl = (first * (own - guide)).sum(-1)
    middle = torch.logaddexp(own, guide).sub_(math.log(2))
    jsd = (first.mul_(own - middle).sum(-1) + second.mul_(guide - middle).sum(-1)) / 2
    return kl.clamp_min_(0), jsd.clamp_min_(0)


def _against(tokens: Tensor, own: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The figures of a reference whose vocabulary may be shorter."""
    shared = reference.shape[1]
    known = tokens < shared
    logprob = _of(reference, tokens.clamp_max(shared - 1))
    weights, own = reference.exp(), own[:, :shared]
    mean = (weights * own).sum(-1)
    variance = weights.mul_((own - mean[:, None]).square_()).sum(-1)
    return {
        "reference_logprob": logprob.where(known, torch.full_like(logprob, EXCLUDED)),
        "cross_entropy": -mean,
        "cross_variance": variance,
    }
