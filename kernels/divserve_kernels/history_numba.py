"""Look-back's distances for CPUs: vector code that reads the pages in place.

A range is cut into stretches. If there is work for several cores, the threads share the stretches
of all rows. Minima do not depend on which thread finds them, so neither does the result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from divserve_kernels import history_torch
from divserve_kernels.numba_host import limit_threads, memory
from divserve_kernels.numba_jit import compiled
from divserve_kernels.numba_math import as_bits, as_float

__all__ = ["nearest", "supports"]

F, I32 = np.float32, np.int32
STRETCH = 128
"""Positions per task."""
SMALL = 1 << 21
"""How many numbers one thread reads in 0.1 ms; on a busy machine it takes longer to wake others."""
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""The types as which states are read: numba has no 16-bit floats."""
REBIAS = F(2.0**112)
"""float16's exponents, read as float32's, are too small by 112."""


def supports(states: Tensor, mu: Tensor, tables: Tensor) -> bool:
    """Whether these tensors are supported: rows without gaps, on the CPU."""
    tensors = (states, mu, tables)
    known = states.dtype in BITS and mu.dtype is torch.float32
    return known and all(t.device.type == "cpu" and t.stride(-1) == 1 for t in tensors)


def nearest(
    states: Tensor,
    lse: Tensor,
    tables: Tensor,
    rows: Tensor,
    starts: Tensor,
    stops: Tensor,
    mu: Tensor,
    neg_entropy: Tensor,
    most: int,
) -> tuple[Tensor, Tensor]:
    """See `divserve_kernels.nearest`; torch handles what `supports` rejects."""
    if not supports(states, mu, tables):
        arguments = (states, lse, tables, rows, starts, stops, mu, neg_entropy, most)
        return history_torch.nearest(*arguments)
    count, hidden = mu.shape
    stretches = -(-most // STRETCH)
    lows = np.empty((count, stretches), dtype=np.float32)
    places = np.empty((count, stretches), dtype=np.int32)
    kind = (states.dtype is torch.float16, 16 if states.dtype is torch.bfloat16 else 0)
    pages = (memory(states.view(BITS[states.dtype])), *states.stride()[:2], states.shape[1], *kind)
    sequences = (memory(tables), tables.stride(0), memory(rows), memory(starts), memory(stops))
    means = (memory(mu), mu.stride(0), hidden, memory(neg_entropy))
    if count * most * hidden <= SMALL:
        _alone(pages, memory(lse), sequences, means, lows, places)
    else:
        limit_threads()
        _together(pages, memory(lse), sequences, means, lows, places)
    return torch.from_numpy(lows[:, 0].copy()), torch.from_numpy(places[:, 0].copy())


@compiled()
def _half(raw: Any) -> Any:
    """The float32 of a float16's bits."""
    bits = (I32(raw) & I32(0x7FFF)) << I32(13)
    # Infinity and NaN have the largest exponent in both.
    size = as_float(bits) * REBIAS if bits < I32(0x0F800000) else as_float(bits | I32(0x7F800000))
    return as_float(as_bits(size) | ((I32(raw) & I32(0x8000)) << I32(16)))


# Sums may be reordered for vector code; NaN and infinity keep their meaning.
@compiled(fastmath={"reassoc", "contract", "nsz"})
def _dot(state: Any, mean: Any, half: bool, shift: Any) -> Any:
    """Σ state·mean over ``[H]``; ``shift``: by how many bits a state is shorter than a float32."""
    total = F(0)
    if half:
        for i in range(mean.size):
            total += _half(state[i]) * mean[i]
    else:
        for i in range(mean.size):
            total += as_float(I32(state[i]) << shift) * mean[i]
    return total


@compiled()
def _stretch(
    pages: Any, lse: Any, sequences: Any, means: Any, n: int, s: int, lows: Any, places: Any
) -> None:
    """Writes the nearest of row n's s-th stretch to ``lows`` and ``places`` ``[N, stretches]``."""
    store, page_stride, stride, block, half, shift = pages
    tables, table_stride, rows, starts, stops = sequences
    mu, mu_stride, hidden, neg_entropy = means
    mean = mu[n * mu_stride : n * mu_stride + hidden]
    first = starts[n] + s * STRETCH
    low, place = F(math.inf), -1
    for j in range(first, min(first + STRETCH, stops[n])):
        page, offset = np.int64(tables[rows[n] * table_stride + j // block]), j % block
        at = page * page_stride + offset * stride
        dot = _dot(store[at : at + hidden], mean, half, I32(shift))
        kl = lse[page * block + offset] - dot + neg_entropy[n]
        kl = F(0) if kl < 0 else kl
        # Once NaN, it stays NaN.
        if not kl > low and low == low:
            low, place = kl, j
    lows[n, s], places[n, s] = low, place


@compiled()
def _merge(lows: Any, places: Any) -> None:
    """Moves each row's nearest, ``[N, stretches]``, to the front; the latest if equal."""
    for n in range(lows.shape[0]):
        for s in range(1, lows.shape[1]):
            if lows[n, 0] == lows[n, 0] and not lows[n, s] > lows[n, 0] and places[n, s] >= 0:
                lows[n, 0], places[n, 0] = lows[n, s], places[n, s]


@compiled()
def _alone(pages: Any, lse: Any, sequences: Any, means: Any, lows: Any, places: Any) -> None:
    """All stretches on one thread."""
    stretches = lows.shape[1]
    for task in range(lows.size):
        _stretch(pages, lse, sequences, means, task // stretches, task % stretches, lows, places)
    _merge(lows, places)


@compiled(parallel=True)
def _together(pages: Any, lse: Any, sequences: Any, means: Any, lows: Any, places: Any) -> None:
    """All stretches, shared between threads."""
    stretches = lows.shape[1]
    for task in prange(lows.size):
        _stretch(pages, lse, sequences, means, task // stretches, task % stretches, lows, places)
    _merge(lows, places)
