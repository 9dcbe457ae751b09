"""How much of one prompt vLLM reads in a step: ``--long-prefill-token-threshold``."""

from __future__ import annotations

from dataclasses import dataclass

from divserve.engine.scheduler.host import Host

__all__ = ["Chunk"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bounds of the most tokens that one request gets in the coming step."""

    surely: int
    """A request with no more tokens than this is not cut, if the step has room for it."""
    at_most: int

    @classmethod
    def of(cls, host: Host) -> Chunk:
        """The bounds of the coming step.

        vLLM counts the running and waiting requests when it begins a step, and divides its tokens
        among them under ``--long-prefill-token-threshold-adaptive``. By then, requests may have
        been taken out of the queues.
        """
        config, budget = host.scheduler_config, host.max_num_scheduled_tokens
        threshold = int(config.long_prefill_token_threshold)
        queued = len(host.waiting) + len(host.kv_holding_waiting)
        if not threshold or len(host.running) + queued <= 1:
            return cls(budget, budget)
        share = 0
        if config.long_prefill_token_threshold_adaptive:
            share = config.max_num_batched_tokens // max(1, len(host.running))
        return cls(threshold, max(threshold, share))
