"""Distances of distributions to those of earlier positions, from hidden states: look-back.

Where logits are ``W·h``, without a bias or a cap, the distribution p of a row and the one at an
earlier position j, of which its hidden state h_j and lse_j = log Σ exp(W·h_j) are kept, have::

    KL(p ‖ p_j) = Σ p log p − μ·h_j + lse_j        μ = Wᵀp

One product with W per row (`expected_row`), then H numbers per position instead of V. Hidden states
lie in pages, as a KV cache has them: position j of a sequence is entry ``j % block`` of the page
that its block table names for ``j // block``; its slot is ``page · block + j % block``.

==========  ======================  =====================================================
``triton``  NVIDIA                  each row's range split over programs, then one merge
``numba``   CPU                     vector code on the pages as they lie, all cores
``torch``   any                     gathers, at most `history_torch.PAIRS` states at once
==========  ======================  =====================================================

The choice is `backends.choose`'s. None waits for a device: its launches follow from ``most``.

Errors against float64 with SmolLM2's matrix: of a KL 2e-6 for a given μ, 1e-5 with the μ of
`expected_row`. Two equal distributions have a KL of 0 only up to that, and up to how lse_j and p
were rounded: logits that an engine rounds to bfloat16 put up to 0.06 on it.
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
    """The least distance of each row to its range."""

    kl: Tensor
    """``[N] float32``: min over j of max(KL(p ‖ p_j), 0), nats; ∞ for an empty range."""
    position: Tensor
    """``[N] int32``: its j, the latest of equals; −1 for an empty range."""


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

    A NaN among what a row is compared with (its own included) makes that row's KL NaN, at any
    position of its range, and no other row's. What lies outside of a row's range is not read for
    it: neither its slots nor its block table.

    Args:
        states: ``[blocks, block, H] float32, bfloat16 or float16``: hidden states in pages; any
            strides but the last, which is 1.
        lse: ``[blocks·block + 1] float32``, contiguous: log Σ exp of the logits of each slot; the
            last one is where writers put what nobody wants, and is not read.
        tables: ``[sequences, max_blocks] int32``: pages of each sequence; rows without gaps.
        rows: ``[N] int64``: rows of ``tables``.
        starts, stops: ``[N] int32``.
        mu: ``[N, H] float32``: `expected_row`; rows without gaps.
        neg_entropy: ``[N] float32``: Σ p log p.
        most: no ``stop − start`` is larger; known to the host, so that no device is asked.
    """
    count = len(rows)
    if count == 0 or most <= 0:
        kl = torch.full((count,), math.inf, device=states.device)
        return Nearest(kl, torch.full((count,), -1, dtype=torch.int32, device=states.device))
    name = backends.choose(states.device).name
    module = importlib.import_module(f"divserve_kernels.history_{name}")
    arguments = (states, lse, tables, rows, starts, stops, mu, neg_entropy, most)
    return Nearest(*module.nearest(*arguments))
