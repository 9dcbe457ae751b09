"""The small engine's metrics: vLLM's own cover only one engine per process."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from divserve import metrics

__all__ = ["SmallEngineStats"]


class SmallEngineStats(StatLoggerBase):
    """Gauges of its queues and of its KV cache."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._running = metrics.ENGINE_REQUESTS.labels("small", "running")
        self._waiting = metrics.ENGINE_REQUESTS.labels("small", "waiting")
        self._cache = metrics.ENGINE_CACHE.labels("small")

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Records the state of the queues after a step."""
        if scheduler_stats is not None:
            self._running.set(scheduler_stats.num_running_reqs)
            self._waiting.set(scheduler_stats.num_waiting_reqs)
            self._cache.set(scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None:
        """Logs nothing."""
