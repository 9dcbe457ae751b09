"""How much of one prompt vLLM reads in a step.

``--long-prefill-token-threshold`` is a limit. Models with recurrent state also stop where a state
is to be cached: at boundaries of blocks.
"""

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
    whole: int
    """A prompt with no more tokens than this is read at once, if the step has room for it."""

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
        surely, at_most = budget, budget
        if threshold and len(host.running) + queued > 1:
            share = 0
            if config.long_prefill_token_threshold_adaptive:
                share = config.max_num_batched_tokens // max(1, len(host.running))
            surely, at_most = threshold, max(threshold, share)
        if not host.need_mamba_block_aligned_split:
            return cls(surely, at_most, surely)
        # vLLM also rounds a chunk down to whole blocks, perhaps to none.
        block = host.hash_block_size if host.mamba_partial_cache_hit else host.block_size
        return cls(0, at_most, min(surely, block))
