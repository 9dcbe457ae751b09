"""The likeliest tokens for CPUs: one pass over each row that needs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from divserve_kernels import candidates_torch
from divserve_kernels.numba_jit import compiled

__all__ = ["likeliest", "supports"]


def supports(logits: Tensor) -> bool:
    """Whether these logits are supported: float32 rows without gaps, on the CPU."""
    known = logits.dtype is torch.float32 and logits.device.type == "cpu"
    return known and logits.stride(1) == 1


def likeliest(logits: Tensor, wanted: Tensor, k: int) -> Tensor:
    """See `divserve_kernels.likeliest`; torch handles what `supports` rejects."""
    if not supports(logits):
        return candidates_torch.likeliest(logits, wanted, k)
    found = torch.zeros(len(logits), k, dtype=torch.int64)
    _rows(logits.detach().numpy(), wanted.numpy(), found.numpy())
    return found


@compiled()
def _above(z: Any, other: Any) -> Any:
    """Whether z is larger; NaN is the largest."""
    return z > other or (z != z and other == other)


@compiled()
def _rows(logits: Any, wanted: Any, found: Any) -> None:
    """Writes the tokens of the wanted rows to ``found`` ``[N, k]``."""
    k = found.shape[1]
    best = np.empty(k, np.float32)
    for n in range(wanted.size):
        if wanted[n]:
            row, count = logits[n], 0
            for token in range(row.size):
                z = row[token]
                if count == k and not _above(z, best[k - 1]):
                    continue
                # Behind all that are not smaller: of equals, the first stays before the others.
                count = min(count + 1, k)
                place = count - 1
                while place > 0 and _above(z, best[place - 1]):
                    best[place], found[n, place] = best[place - 1], found[n, place - 1]
                    place -= 1
                best[place], found[n, place] = z, token
