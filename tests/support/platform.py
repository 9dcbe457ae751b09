"""What engines of the tests run on: an NVIDIA GPU if this machine has one, else the CPU."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import pytest

__all__ = ["ON_GPU", "OPTIONS", "cpu_only", "engine_options", "server_flags", "told"]

# As vLLM asks. torch's own way starts CUDA in this process, and those forked later cannot use it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
ON_GPU = torch.cuda.is_available()
OPTIONS = "DIVSERVE_TEST_ENGINE"
"""Environment variable: arguments of `vllm.LLM` as JSON, which win over those of a test."""
MEMORY_SHARE = 0.25
"""Share of a GPU that an engine or server of a test may take: several run at once."""
KV_CACHE = 2 << 30
"""Bytes of an engine's KV cache on a GPU; a CPU's are in an environment variable of vLLM."""


def engine_options(*, lockstep: bool, asynchronous: bool, on_gpu: bool = ON_GPU) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for the platform.

    Args:
        lockstep: whether divserve is installed in the engine.
        asynchronous: whether steps are scheduled ahead.
        on_gpu: the platform.
    """
    found: dict[str, Any] = {
        # Never left to vLLM: once enabled, it would be the default for all later engines.
        "async_scheduling": asynchronous,
    }
    if on_gpu:
        found |= {"gpu_memory_utilization": MEMORY_SHARE, "kv_cache_memory_bytes": KV_CACHE}
    if lockstep:
        scheduler = "AsyncLockstepScheduler" if asynchronous else "LockstepScheduler"
        worker = "GuidedGPUWorker" if on_gpu else "GuidedCPUWorker"
        found["scheduler_cls"] = f"divserve.engine.scheduler.scheduler.{scheduler}"
        found["worker_cls"] = f"divserve.engine.worker.worker.{worker}"
    return found


def cpu_only(why: str) -> pytest.MarkDecorator:
    """Marks a test of what only machines without a GPU do."""
    # Benches use this module, too, where pytest need not be installed.
    import pytest

    return pytest.mark.skipif(ON_GPU, reason=why)


def told() -> dict[str, Any]:
    """The arguments in the environment."""
    options: dict[str, Any] = json.loads(os.environ.get(OPTIONS, "{}"))
    return options


def server_flags(on_gpu: bool = ON_GPU) -> list[str]:
    """Flags of ``divserve serve`` with which several servers fit one GPU."""
    return ["--gpu-memory-utilization", str(MEMORY_SHARE)] if on_gpu else []
