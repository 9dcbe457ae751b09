"""What compiled functions get: tensors as arrays, and the number of threads they may use."""

from __future__ import annotations

from typing import Any

import torch
from numba import config, set_num_threads
from torch import Tensor

__all__ = ["limit_threads", "memory"]


def memory(tensor: Tensor) -> Any:
    """The memory from the first to the last entry of a tensor, rows without gaps, as one array."""
    tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in pairs)
    return tensor.detach().as_strided((span,), (1,)).numpy()


def limit_threads() -> None:
    """Never more threads than torch may use: the operator has bound those to cores."""
    allowed = torch.get_num_threads()
    set_num_threads(min(allowed, config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != allowed:
        # The first call starts numba's threads, and gives OpenMP, which torch uses too, as many.
        torch.set_num_threads(allowed)
