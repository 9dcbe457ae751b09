"""vLLM's workers with the guided runner installed; named in the engine's ``worker_cls``."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from divserve.engine import runner, runner_v2

__all__ = ["GuidedCPUWorker", "GuidedGPUWorker"]


class GuidedCPUWorker(CPUWorker):
    """CPU worker."""

    def init_device(self) -> None:
        """Builds vLLM's runner, then hooks into it."""
        super().init_device()
        _install(self)


class GuidedGPUWorker(Worker):
    """CUDA worker."""

    def init_device(self) -> None:
        """Builds vLLM's runner, then hooks into it."""
        super().init_device()
        _install(self)


def _install(worker: Any) -> None:
    module = runner_v2 if worker.use_v2_model_runner else runner
    module.install(worker.model_runner)
