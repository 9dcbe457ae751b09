"""Distances from distributions to those of earlier positions, from hidden states: look-back.

Let logits be ``W·h``, without a bias or a cap, and p the distribution of a row. For an earlier
position j the hidden state h_j and lse_j = log Σ exp(W·h_j) are kept. Then::

    KL(p ‖ p_j) = Σ p log p − μ·h_j + lse_j        μ = Wᵀp

That is one product with W per row (`expected_row`), then H numbers per position instead of V.
Hidden states are in pages like those of a KV cache: position j of a sequence is entry ``j % block``
of the page that its block table names for ``j // block``; its slot is ``page · block + j % block``.

==========  ======================  =====================================================
``triton``  NVIDIA                  each row's range split over programs, then one merge
``numba``   CPU                     vector code on the pages in place, all cores
``torch``   any                     gathers, at most `history_torch.PAIRS` states at once
==========  ======================  =====================================================

`backends.choose` chooses. None of them waits for a device: ``most`` determines the launches.

Errors of a KL against float64 with SmolLM2's matrix: 2e-6 for a given μ, 1e-5 with the μ of
`expected_row`. The KL of two equal distributions is 0 only up to these errors and to the rounding
of lse_j and p: logits that an engine rounds to bfloat16 add up to 0.06.
"""

from __future__ import annotations

import importlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from divserve_kernels import backends
from divserve_kernels.history_mean import expected_row

__all__ = ["Nearest", "expected_row", "nearest"]


class Nearest(NamedTuple):
    """The smallest distance from each row to the positions in its range."""

    kl: Tensor
    """``[N] float32``: min over j of max(KL(p ‖ p_j), 0), nats; ∞ for an empty range."""
    position: Tensor
    """``[N] int32``: its j, the latest if several are equal; −1 for an empty range."""


def nearest(
    states: Tensor,
    lse: Tensor,
    tables: Tensor,
    rows: Tensor,
    starts: Tensor,
    stops: Tensor,
    mu: Tensor,
    neg_entropy: Tensor,
    *,
    most: int,
) -> Nearest:
    """Compares each row with the positions start ≤ j < stop of its sequence.

    A NaN at any position of a row's range, or in the row itself, makes that row's KL NaN, and no
    other row's. Nothing outside a row's range is read for it: neither slots nor block table.

    Args:
        states: ``[blocks, block, H] float32, bfloat16 or float16``: hidden states in pages; any
            strides, but the last must be 1.
        lse: ``[blocks·block + 1] float32``, contiguous: log Σ exp of the logits of each slot; the
            last entry takes unwanted writes and is not read.
        tables: ``[sequences, max_blocks] int32``: pages of each sequence; rows without gaps.
        rows: ``[N] int64``: rows of ``tables``.
        starts: ``[N] int32``.
        stops: ``[N] int32``.
        mu: ``[N, H] float32``: `expected_row`; rows without gaps.
        neg_entropy: ``[N] float32``: Σ p log p.
        most: no ``stop − start`` is larger; a host number, so that the device need not be read.
    """
    count = len(rows)
    if count == 0 or most <= 0:
        kl = torch.full((count,), math.inf, device=states.device)
        return Nearest(kl, torch.full((count,), -1, dtype=torch.int32, device=states.device))
    name = backends.choose(states.device).name
    module = importlib.import_module(f"divserve_kernels.history_{name}")
    arguments = (states, lse, tables, rows, starts, stops, mu, neg_entropy, most)
    return Nearest(*module.nearest(*arguments))
