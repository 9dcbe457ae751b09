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

from divserve.engine.scheduler.admission import AdmissionMixin
from divserve.engine.scheduler.group import Group, remaining_tokens

__all__ = ["PreflightMixin"]


class PreflightMixin(AdmissionMixin):
    """Preemption in whole units."""

    def _preflight(self, joining: list[Request], looking: list[Request]) -> bool:
        """Preempts until the running list and ``joining`` fit; returns whether it preempted.

        Both lists lose at their ends what does not fit all the same: ``joining`` whole groups, and
        ``looking`` first, which can wait for what runs, unless that waits in its turn.
        """
        pool = self.kv_cache_manager.block_pool
        most = self._most_blocks_needed() + self._blocks_of([*joining, *looking])
        if pool.get_num_free_blocks() >= most:
            return False
        if self._make_room(self._blocks_of(joining)):
            return True
        while joining and self._blocks_of(joining) > self._blocks_left():
            self._leave_out(self._groups[joining[-1].request_id], joining)
        if not looking:
            return False
        left = self._blocks_left()
        while looking and self._blocks_of([*joining, *looking]) > left:
            looking.pop()
        if looking:
            return False
        units = self._units()
        waits = bool(units) and all(map(self._is_stuck, units))
        if waits:
            self._preempt_unit(max(units, key=self._eviction_key))
        return waits

    def _blocks_left(self) -> int:
        """Free blocks beside what the running list will ask for."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return int(free - self._blocks_needed(self.running))

    @abstractmethod
    def _leave_out(self, group: Group, joining: list[Request]) -> None:
        """Has a group wait that was to sample in this step (`LockstepMixin`)."""

    def _make_room(self, extra: int) -> bool:
        """Preempts until the running list and so many blocks fit; returns whether it preempted."""
        preempted = False
        while extra > self._blocks_left():
            units = self._units()
            if len(units) > 1 or (units and self._is_stuck(units[0])):
                self._preempt_unit(max(units, key=self._eviction_key))
            elif not (units and self._give_up_waiting()):
                break
            preempted = True
        return preempted

    def _blocks_of(self, entering: Sequence[Request]) -> int:
        """Free blocks without which vLLM would not admit all of these, of a token each."""
        if not entering:
            return 0
        new = sum(not self._holds_kv_blocks(request) for request in entering)
        return int(self._blocks_for(1) * new + self.kv_cache_manager.watermark_blocks)

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
            if _is_through(request):
                continue
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


def _is_through(request: Request) -> bool:
    """Whether vLLM's loop passes it over: its last token is on its way."""
    placeholders = request.num_output_placeholders
    least = request.num_computed_tokens + 2 - placeholders
    return bool(placeholders > 0 and least >= request.num_prompt_tokens + request.max_tokens)
