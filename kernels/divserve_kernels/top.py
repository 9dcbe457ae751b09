"""The likeliest tokens of some rows of logits and their log-probs: what a trace shows of a stream.

Plain torch on every device: only rows of requests that ask for it are read, and a kernel of its own
would have to be compiled for each vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from divserve_kernels.candidates_torch import of_all

__all__ = ["LARGEST_VOCABULARY", "top_logprobs"]

AT_ONCE = 64
"""Rows that are copied to float32 at a time: 34 MB of a vocabulary of 131,072."""
LARGEST_VOCABULARY = 1 << 24
"""Token ids below this are exact in float32."""


def top_logprobs(logits: Tensor, rows: Tensor, k: int) -> Tensor:
    """The k likeliest tokens of some rows, the likeliest first, and their log-probs.

    Of equal logits the one with the smaller token id comes first. A token without probability, or
    any token of a row without one that has, gets −inf or NaN.

    Args:
        logits: ``[R, V] float32 or bfloat16``.
        rows: ``[N] int64``, on the same device.
        k: at most V.

    Returns:
        ``[N, 2, k] float32`` on the same device, not synchronised: token ids, then natural
        logarithms of their probabilities under softmax.

    Raises:
        ValueError: k is larger than V, or V than `LARGEST_VOCABULARY`.
    """
    vocab = logits.shape[1]
    if not k <= vocab <= LARGEST_VOCABULARY:
        raise ValueError(f"{k} tokens of {vocab}; at most {LARGEST_VOCABULARY} can be told apart")
    parts = [_of_part(logits.index_select(0, part).float(), k) for part in rows.split(AT_ONCE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _of_part(logits: Tensor, k: int) -> Tensor:
    ids = of_all(logits, k)
    logprobs = logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True)
    return torch.stack((ids.float(), logprobs), dim=1)
