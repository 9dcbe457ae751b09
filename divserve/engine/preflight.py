"""KV blocks for the coming step, secured before vLLM's own loop runs.

vLLM preempts one request at a time when blocks run out, and could so split a group in the middle of
a step. Here the need of the whole running list is compared with the free blocks first, and whole
units (one plain request, or all members of a group) are preempted until it fits.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from divserve.engine.admission import AdmissionMixin
from divserve.engine.group import Group, remaining_tokens

__all__ = ["PreflightMixin"]


class PreflightMixin(AdmissionMixin):
    """Preemption in whole units."""

    def _preflight(self, joining: Sequence[Request]) -> bool:
        """Preempts until the running list and ``joining`` fit; returns whether it preempted."""
        pool = self.kv_cache_manager.block_pool
        extra = 0
        if joining:
            watermark = self.kv_cache_manager.watermark_blocks
            extra = self._blocks_for(1) * len(joining) + watermark
        if pool.get_num_free_blocks() >= self._most_blocks_needed() + extra:
            return False
        preempted = False
        while self._blocks_needed(self.running) + extra > pool.get_num_free_blocks():
            units = self._units()
            if len(units) > 1 or (units and self._is_stuck(units[0])):
                self._preempt_unit(max(units, key=self._eviction_key))
            elif not (units and self._give_up_waiting()):
                break
            preempted = True
        return preempted

    def _eviction_key(self, unit: Sequence[Request]) -> tuple[int, float]:
        """Newest first; under the priority policy the least urgent first."""
        by_priority = self.policy == SchedulingPolicy.PRIORITY
        return (unit[0].priority if by_priority else 0, unit[0].arrival_time)

    def _most_blocks_needed(self) -> int:
        """An upper bound of `_blocks_needed` that costs no loop over the requests."""
        managers = self.kv_cache_manager.coordinator.single_type_managers
        tokens = self.max_num_scheduled_tokens
        return sum(2 * len(self.running) + cdiv(tokens, m.block_size) for m in managers)

    def _blocks_needed(self, requests: Iterable[Request]) -> int:
        """New blocks that the running loop will ask for in this step (never too few)."""
        manager = self.kv_cache_manager
        budget = self.max_num_scheduled_tokens
        need = 0
        for request in requests:
            left = remaining_tokens(request) - self._is_held(request)
            tokens = min(left, budget)
            if tokens <= 0:
                continue
            budget -= tokens
            total = request.num_computed_tokens + tokens
            need += manager.coordinator.get_num_blocks_to_allocate(
                request_id=request.request_id,
                num_tokens=min(total + self.num_lookahead_tokens, self.max_model_len),
                new_computed_blocks=manager.empty_kv_cache_blocks.blocks,
                num_encoder_tokens=0,
                total_computed_tokens=request.num_computed_tokens,
                num_local_computed_tokens=request.num_computed_tokens,
                num_tokens_main_model=total,
                prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
            )
        return need

    @abstractmethod
    def _give_up_waiting(self) -> bool:
        """Frees the blocks of a request that waits with them (`LookBackMixin`)."""

    def _is_stuck(self, unit: Sequence[Request]) -> bool:
        """Whether all of it that is admitted is held, so that it waits for its other members."""
        running = [m for m in unit if m.status == RequestStatus.RUNNING]
        return all(self._is_held(m) and remaining_tokens(m) == 1 for m in running)

    def _units(self) -> list[tuple[Request, ...]]:
        units: dict[int, tuple[Request, ...]] = {}
        for request in self.running:
            group = self._groups.get(request.request_id)
            owner: Group | Request = group or request
            units.setdefault(id(owner), group.members if group else (request,))
        return list(units.values())

    def _preempt_unit(self, unit: Sequence[Request]) -> None:
        now = time.monotonic()
        for member in reversed(tuple(unit)):
            if member.status == RequestStatus.RUNNING:
                self.running.remove(member)
                self._released.discard(member.request_id)
                self._preempt_request(member, now, drop_stale_output=self.requires_kv_delivery)
