"""The back ends of the operation, and which one serves a device.

==========  ======================  =====================================================
``triton``  NVIDIA                  one launch, rows split over blocks
``numba``   CPU                     three fused passes over cached segments, all cores
``torch``   any                     whole-tensor operations; serves if the others cannot
==========  ======================  =====================================================

``DIVSERVE_KERNELS=<name>`` overrides the choice and also takes ``reference`` (float64, slow).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from divserve_kernels.streams import Streams

__all__ = ["BackEnd", "available", "choose"]

Run = Callable[[Tensor, Streams, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class BackEnd:
    """One implementation: ``run`` takes the arguments of `divserve_kernels.guide` in order."""

    name: str
    run: Run
    why: str
    """Why this one was chosen, for people to read."""


def _load(name: str) -> Run:
    if name == "numba":
        return _numba_or_torch()
    module = importlib.import_module(
        f"divserve_kernels.{'reference' if name == 'reference' else f'{name}_backend'}"
    )
    run: Run = module.guide
    return run


def _numba_or_torch() -> Run:
    """The fused back end, with torch for what it does not support (bfloat16, gaps in rows)."""
    from divserve_kernels import numba_backend, torch_backend

    def run(logits: Tensor, streams: Streams, side: Tensor | None, out: Tensor) -> Tensor:
        if numba_backend.supports(logits, side, out):
            return numba_backend.guide(logits, streams, side, out)
        return torch_backend.guide(logits, streams, side, out)

    return run


def available(device: torch.device) -> tuple[str, ...]:
    """Names of the back ends that can serve a device, best first."""
    fused = {"cuda": ("triton",), "cpu": ("numba",)}.get(device.type, ())
    found = (name for name in fused if importlib.util.find_spec(name) is not None)
    return (*found, "torch", "reference")


def choose(device: torch.device) -> BackEnd:
    """The back end that serves a device.

    Raises:
        ValueError: ``DIVSERVE_KERNELS`` names no back end that can.
    """
    return _choose(device.type, os.environ.get("DIVSERVE_KERNELS", ""))


@cache
def _choose(device_type: str, wanted: str) -> BackEnd:
    names = available(torch.device(device_type))
    if not wanted:
        return BackEnd(names[0], _load(names[0]), f"the best for {device_type}")
    if wanted not in names:
        raise ValueError(
            f"DIVSERVE_KERNELS={wanted}: for {device_type} there is {', '.join(names)}"
        )
    return BackEnd(wanted, _load(wanted), "DIVSERVE_KERNELS")
