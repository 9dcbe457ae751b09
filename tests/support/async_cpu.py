"""Asynchronous scheduling on CPU, for tests of the scheduler's semantics only.

vLLM switches it off there because its output class copies by CUDA streams. This stand-in class has
nothing to copy; two steps are in flight exactly as on a GPU.
"""

from __future__ import annotations

from typing import Any


def allow_async_scheduling() -> None:
    """Patches vLLM in this process (idempotent)."""
    import vllm.v1.worker.gpu_model_runner as runner_module
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.outputs import AsyncModelRunnerOutput

    if getattr(CpuPlatform, "divserve_async_allowed", False):
        return
    original = CpuPlatform.check_and_update_config.__func__

    def keep_async(cls: Any, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    class Event:
        def synchronize(self) -> None: ...

        def record(self) -> None: ...

    class CpuAsyncOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
        def __init__(
            self,
            model_runner_output: Any,
            sampled_token_ids: Any,
            logprobs_tensors: Any,
            invalid_req_indices: list[int],
            **_: Any,
        ) -> None:
            self.output = model_runner_output
            self.invalid = invalid_req_indices
            self.logprobs = logprobs_tensors
            self.sampled_token_ids_cpu = sampled_token_ids.clone()
            self.async_copy_ready_event = Event()

        def get_output(self) -> Any:
            tokens = self.sampled_token_ids_cpu.tolist()
            for row in self.invalid:
                tokens[row].clear()
            self.output.sampled_token_ids = tokens
            self.output.logprobs = self.logprobs.tolists() if self.logprobs is not None else None
            return self.output

    CpuPlatform.check_and_update_config = classmethod(keep_async)
    CpuPlatform.divserve_async_allowed = True
    runner_module.AsyncGPUModelRunnerOutput = CpuAsyncOutput
    runner_module.GPUModelRunner._get_or_create_async_output_copy_stream = lambda self: None
