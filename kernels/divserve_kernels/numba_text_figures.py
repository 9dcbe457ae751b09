"""The figures of given tokens for CPUs: a few passes over each row, which stays in a cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from divserve_contract import EXCLUDED, FIGURES, Figures
from divserve_kernels.numba_divergences import distances, positive
from divserve_kernels.numba_extents import extent, sum_exp
from divserve_kernels.numba_host import limit_threads, memory
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import INFINITY, LOG_ZERO, F, at_least, exp, log_prob, vector

__all__ = ["text_figures"]

FIGURE = Figures(*range(len(FIGURES)))
"""Index of each figure; ints."""
LOWEST = F(EXCLUDED)


def text_figures(
    tokens: Tensor, chosen: Tensor, own: Tensor, guide: Tensor | None, reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `divserve_kernels.text_figures`; the tensors are on the CPU."""
    limit_threads()
    plain, own = chosen is own, _in_float32(own)
    chosen = own if plain else _in_float32(chosen)
    found = np.full((len(tokens), len(FIGURES)), np.nan, np.float32)
    lse = np.empty(len(tokens), np.float32)
    # If a stream is missing, any tensor will do.
    second, third = (own if x is None else _in_float32(x) for x in (guide, reference))
    _rows(
        tokens.numpy(), memory(chosen), chosen.stride(0), memory(own), own.stride(0),
        memory(second), second.stride(0), memory(third), third.stride(0), own.shape[1],
        third.shape[1], plain, guide is not None, reference is not None, found, lse,
    )  # fmt: skip
    return torch.from_numpy(found), torch.from_numpy(lse)


def _in_float32(logits: Tensor) -> Tensor:
    """The same in float32, rows without gaps."""
    logits = logits.float()
    return logits if logits.stride(-1) == 1 else logits.contiguous()


@compiled(parallel=True)
def _rows(
    tokens: Any, chosen: Any, stride: int, own: Any, own_stride: int, guide: Any,
    guide_stride: int, other: Any, other_stride: int, vocab: int, other_vocab: int, plain: bool,
    compared: bool, referred: bool, found: Any, lses: Any,
) -> None:  # fmt: skip
    """Writes the figures of each row to ``found``, and the log-sum-exps of ``chosen``."""
    for i in prange(tokens.size):
        token, row = tokens[i], found[i]
        z = chosen[i * stride : i * stride + vocab]
        lses[i] = _alone(row, z, token)
        z1, lse1 = z, F(lses[i])
        if not plain:
            z1 = own[i * own_stride : i * own_stride + vocab]
            lse1 = _lse(z1)
        row[FIGURE.own_logprob] = at_least(z1[token] - lse1, LOWEST)
        if compared:
            _compare(row, z1, lse1, guide[i * guide_stride : i * guide_stride + vocab], token)
        if referred:
            z3 = other[i * other_stride : i * other_stride + other_vocab]
            _refer(row, z1[:other_vocab], lse1, z3, token)


@compiled()
def _alone(row: Any, z: Any, token: int) -> Any:
    """The figures of one distribution; returns its log-sum-exp."""
    lse = _lse(z)
    entropy, above = _entropy(z, lse, z[token])
    row[FIGURE.logprob] = at_least(z[token] - lse, LOWEST)
    row[FIGURE.rank] = above + 1
    row[FIGURE.entropy] = entropy
    row[FIGURE.varentropy] = _spread(z, lse, z, lse, entropy)
    return lse


@compiled()
def _compare(row: Any, z1: Any, lse1: Any, z2: Any, token: int) -> None:
    """The figures of a distribution and its guide's."""
    lse2 = _lse(z2)
    double_jsd, _variation = distances(z1, z2, lse1, lse2, -INFINITY)
    row[FIGURE.guide_logprob] = at_least(z2[token] - lse2, LOWEST)
    row[FIGURE.kl] = positive(_kl(z1, lse1, z2, lse2))
    row[FIGURE.jsd] = positive(double_jsd / F(2))


@compiled()
def _refer(row: Any, z1: Any, lse1: Any, z3: Any, token: int) -> None:
    """The figures of a distribution under a reference, whose vocabulary may be shorter."""
    lse3 = _lse(z3)
    cross = _cross(z3, lse3, z1, lse1)
    known = token < z3.size
    row[FIGURE.reference_logprob] = at_least(z3[token] - lse3, LOWEST) if known else LOWEST
    row[FIGURE.cross_entropy] = cross
    row[FIGURE.cross_variance] = _spread(z3, lse3, z1, lse1, cross)


@compiled()
def _lse(z: Any) -> Any:
    """log Σ exp."""
    top, _low = extent(z)
    return F(top + math.log(sum_exp(z, top)))


@vector
def _entropy(z: Any, lse: Any, given: Any) -> Any:
    """The entropy, and the number of entries above a given one."""
    entropy, above = F(0), np.int32(0)
    for i in range(z.size):
        l1 = log_prob(z[i], lse)
        entropy -= exp(l1) * l1
        above += np.int32(z[i] > given)
    return entropy, above


@vector
def _spread(weights: Any, lse: Any, z: Any, lse1: Any, mean: Any) -> Any:
    """Σ p·(log q + mean)²; p: softmax of ``weights``, q: of ``z``."""
    total = F(0)
    for i in range(z.size):
        away = at_least(z[i] - lse1, LOWEST) + mean
        total += _weight(weights[i], lse) * away * away
    return total


@vector
def _cross(weights: Any, lse: Any, z: Any, lse1: Any) -> Any:
    """−Σ p·log q; p: softmax of ``weights``, q: of ``z``."""
    total = F(0)
    for i in range(z.size):
        total -= _weight(weights[i], lse) * at_least(z[i] - lse1, LOWEST)
    return total


@vector
def _kl(z1: Any, lse1: Any, z2: Any, lse2: Any) -> Any:
    """Σ p1·(log p1 − log p2)."""
    total = F(0)
    for i in range(z1.size):
        l1 = log_prob(z1[i], lse1)
        total += _weight(z1[i], lse1) * (l1 - at_least(z2[i] - lse2, LOWEST))
    return total


@compiled()
def _weight(z: Any, lse: Any) -> Any:
    """A probability; 0 where its logarithm is below `LOG_ZERO`."""
    x = z - lse
    return F(0) if x < LOG_ZERO else exp(x)
