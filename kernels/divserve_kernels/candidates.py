"""The likeliest tokens of the rows that need them: candidates of look-back's alarms.

Which rows need them is known on the device only, and almost always none does. So the mask is an
argument: fused back ends return at once for the other rows, where a top-k of all rows would read
``[N, V]`` logits several times in every step.

==========  ======================  =====================================================
``triton``  NVIDIA                  a program per tile, then one merge per row
``numba``   CPU                     one pass per row that keeps the best so far
``torch``   any                     a top-k of all rows; on a CPU of those that need it
==========  ======================  =====================================================
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from divserve_kernels import backends

__all__ = ["MOST", "likeliest"]

MOST = 32
"""Most tokens of a row."""


def likeliest(logits: Tensor, wanted: Tensor, k: int) -> Tensor:
    """The k largest logits of each wanted row, the largest first.

    Of equal logits the one with the smaller token id comes first (``torch.topk`` leaves that open).
    NaN counts as the largest, as in ``torch.topk``.

    Args:
        logits: ``[N, V] float32``; rows without gaps.
        wanted: ``[N] bool``.
        k: at most `MOST` and V.

    Returns:
        ``[N, k] int64`` on the same device, not synchronised: token ids; zeros where not wanted.

    Raises:
        ValueError: k is too large.
    """
    if k > min(MOST, logits.shape[1]):
        raise ValueError(f"{k} of {logits.shape[1]} tokens; at most {MOST} are supported")
    if not len(logits) or not k:
        return torch.zeros(len(logits), k, dtype=torch.int64, device=logits.device)
    name = backends.choose(logits.device).name
    module = importlib.import_module(f"divserve_kernels.candidates_{name}")
    found: Tensor = module.likeliest(logits, wanted, k)
    return found
