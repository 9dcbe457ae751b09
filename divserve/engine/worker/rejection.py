"""On CPU: the sampling parameters of draft positions are those of their requests.

vLLM's CPU operation that repeats a request's temperature, top-k or top-p for each of its drafts
works on a copy of all but int64, and so leaves its output as it was allocated. Sampling beside
drafts is wrong without this, for plain requests too (vllm-project/vllm issue 55005).
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.v1.sample import rejection_sampler

__all__ = ["expand", "expand_drafts"]


def expand_drafts() -> None:
    """Replaces vLLM's operation in this process."""
    rejection_sampler.expand_batch_to_tokens = expand


def expand(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """A value of each request, once for each of its drafts: ``[num_tokens]``, of ``x``'s dtype.

    Args:
        x: ``[R]``.
        cu_num_tokens: ``[R] int32``: number of drafts up to and with each request's.
        num_tokens: number of all drafts.
        replace_from: a value that is replaced, if ``replace_to`` differs.
        replace_to: what it becomes.
    """
    values = torch.where(x == replace_from, replace_to, x).to(x.dtype)
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    return values.repeat_interleave(counts, output_size=num_tokens)
