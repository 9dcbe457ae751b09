"""Launches of Triton kernels; in a process that only compiles, their compilation for a named GPU.

Triton's keys of compiled kernels come from the arguments of a launch. A process without a GPU that
runs the same code on tensors of the same kinds therefore fills Triton's cache with what a server on
that GPU will look for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

__all__ = ["Gpu", "compiling_for", "launch", "multiprocessors"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a compilation depends on."""

    arch: int
    """Compute capability: 90 for 9.0."""
    multiprocessors: int

    @classmethod
    def current(cls, device: torch.device) -> Gpu:
        """A device of this machine."""
        major, minor = torch.cuda.get_device_capability(device)
        return cls(10 * major + minor, multiprocessors(device))


_gpu: Gpu | None = None
"""The GPU that kernels are compiled for, without being launched."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> Any:
    """Launches a kernel, or only compiles it (`compiling_for`); returns what Triton compiled."""
    if _gpu is None:
        return kernel[grid](*arguments, **options)
    return kernel.run(*arguments, grid=grid, warmup=True, **options)


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device, or of the GPU that kernels are compiled for."""
    return _multiprocessors(device) if _gpu is None else _gpu.multiprocessors


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@contextmanager
def compiling_for(gpu: Gpu) -> Iterator[None]:
    """Launches in this context only compile, into Triton's cache; they take tensors of any device.

    For the whole process: nothing else may launch a Triton kernel meanwhile.
    """
    global _gpu  # noqa: PLW0603
    before, _gpu = _gpu, gpu
    # Its default is only found where there is a driver.
    active = driver._active
    driver.set_active(_NoDriver(gpu))
    try:
        yield
    finally:
        _gpu = before
        driver._active = active


class _NoDriver:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self._gpu.arch, 32)

    def get_current_device(self) -> int:
        # Kernels are kept by device: none of this context are launched later.
        return -1 - self._gpu.arch

    def get_current_stream(self, _device: int) -> int:
        return 0
