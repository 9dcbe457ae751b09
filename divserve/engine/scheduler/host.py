"""The part of vLLM's scheduler that the scheduler's objects use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

__all__ = ["Host", "Unit"]

Unit = Sequence[Request]
"""What is preempted together: one plain request, or all members of a group."""


class Host(Protocol):
    """vLLM's scheduler as `divserve.engine.scheduler.scheduler` makes it."""

    running: list[Request]
    waiting: Any
    """vLLM's ``RequestQueue``."""
    kv_holding_waiting: Any
    """Queue of requests that wait with their KV blocks; vLLM admits them first."""
    requests: dict[str, Request]
    policy: SchedulingPolicy
    block_size: int
    hash_block_size: int
    need_mamba_block_aligned_split: bool
    mamba_partial_cache_hit: bool
    current_step: int
    """Number of the last step."""
    max_num_scheduled_tokens: int
    max_num_active_reqs: int
    num_waiting_for_streaming_input: int
    num_spec_tokens: int
    lora_config: Any
    connector: Any
    """vLLM's KV connector, or None."""
    kv_cache_manager: Any
    deferred_frees: Any
    """Freed blocks that steps in flight may still write."""
    finished_recving_kv_req_ids: set[str]
    scheduler_config: Any
    _pause_state: PauseState
    _inflight_prefills: set[Request]
    prev_step_scheduled_req_ids: set[str]
    reset_preempted_req_ids: set[str]

    def add_row(self, request: Request) -> None:
        """Adds a request of our own, as vLLM adds one."""

    def end_rows(self, request_ids: Iterable[str], status: RequestStatus) -> None:
        """Ends requests as vLLM ends those that a client aborts; vLLM may call back meanwhile."""

    def _inflight_prefill_reserved_blocks(self) -> int:
        """Blocks that unfinished prefills and loads have yet to take."""

    def preempt(self, unit: Unit, drop_stale: bool = False) -> None:
        """Takes the memory of all members of a unit, but for what is being loaded.

        Args:
            unit: a plain request, or all members of a group.
            drop_stale: whether tokens on their way are thrown away.
        """

    def free_blocks(self, request: Request) -> None:
        """Frees the KV blocks of a request that waits with them."""
