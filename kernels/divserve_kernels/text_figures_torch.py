"""The figures of given tokens in plain torch: the portable back end, for any device and dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from divserve_contract import EXCLUDED, FIGURES

__all__ = ["text_figures"]


def text_figures(
    tokens: Tensor, chosen: Tensor, own: Tensor, guide: Tensor | None, reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `divserve_kernels.text_figures`."""
    log_p, lse = _log_probs(chosen)
    log_own = log_p if chosen is own else _log_probs(own)[0]
    nothing = torch.full((len(tokens),), math.nan, device=own.device)
    found: dict[str, Tensor] = dict.fromkeys(FIGURES, nothing)
    logprob, probs = _of(log_p, tokens), log_p.exp()
    entropy = -(probs * log_p).sum(-1)
    found |= {
        "logprob": logprob,
        "rank": (log_p > logprob[:, None]).sum(-1).float() + 1,
        "entropy": entropy,
        "varentropy": probs.mul_((log_p + entropy[:, None]).square_()).sum(-1),
        "own_logprob": _of(log_own, tokens),
    }
    if guide is not None:
        log_q = _log_probs(guide)[0]
        kl, jsd = _divergences(log_own, log_q)
        found |= {"guide_logprob": _of(log_q, tokens), "kl": kl, "jsd": jsd}
    if reference is not None:
        found |= _against(tokens, log_own, _log_probs(reference)[0])
    return torch.stack([found[name] for name in FIGURES], dim=1), lse


def _log_probs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs ``[S, V]``, at least `EXCLUDED` so that 0·log 0 is 0, and the log-sum-exps."""
    logits = logits.float()
    lse = logits.logsumexp(-1)
    return (logits - lse[:, None]).clamp_min_(EXCLUDED), lse


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
    logprob = _of(reference, tokens.clamp_max(shared - 1))
    weights, own = reference.exp(), own[:, :shared]
    mean = (weights * own).sum(-1)
    variance = weights.mul_((own - mean[:, None]).square_()).sum(-1)
    return {
        "reference_logprob": logprob.masked_fill(tokens >= shared, EXCLUDED),
        "cross_entropy": -mean,
        "cross_variance": variance,
    }
