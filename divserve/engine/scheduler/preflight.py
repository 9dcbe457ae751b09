"""Secures KV blocks for the coming step before vLLM's own loop runs.

vLLM preempts one request at a time when blocks run out, which could split a group in the middle of
a step. So the need of the whole running list is first compared with the free blocks, and whole
units (one plain request, or all members of a group) are preempted until it fits.
"""

from __future__ import annotations

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.chunks import Chunk
from divserve.engine.scheduler.drafts import Drafts
from divserve.engine.scheduler.group import Group, remaining_tokens
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host, Unit
from divserve.engine.scheduler.transfer import Transfer

__all__ = ["Preflight"]


STALLED = 3
"""Steps in a row that are no coincidence: a group may have become ready in the first."""


class Preflight:
    """Preemption in whole units.

    Args:
        host: the scheduler.
        groups: all groups.
        blocks: the KV cache.
        alarms: requests that wait with their blocks.
        transfer: likewise.
        drafts: are dropped before anything is preempted.
    """

    def __init__(
        self,
        host: Host,
        groups: Groups,
        blocks: Blocks,
        alarms: Alarms,
        transfer: Transfer,
        drafts: Drafts,
    ) -> None:
        self._host, self._groups, self._blocks = host, groups, blocks
        self._alarms, self._transfer, self._drafts = alarms, transfer, drafts
        self._stalled = 0
        """Steps in a row in which only loaded requests could go on, and did not."""

    def unstall(self) -> None:
        """If only loaded requests can go on and none does, the newest of them starts over.

        Each of them fits into the cache, but not all of them need fit together.
        """
        waiting = self._transfer.waiting_units()
        if not waiting or not all(map(self._is_stuck, self._groups.units(self._host.running))):
            self._stalled = 0
            return
        self._stalled += 1
        if self._stalled >= STALLED:
            self._host.preempt(max(waiting, key=self.eviction_key))

    def secure(self, joining: list[Group], looking: list[Request]) -> bool:
        """Preempts until running requests and ``joining`` fit; returns whether it preempted.

        What still does not fit is removed from the ends of the lists: first from ``looking``, then
        whole groups from ``joining``. Requests of ``looking`` can wait for running ones; they only
        cause a preemption if none of them fits and all running requests are stuck.

        Args:
            joining: groups whose one-token members are to be admitted.
            looking: probes and requests that take a candidate.
        """
        host, blocks = self._host, self._blocks
        most = blocks.most_of_step(len(host.running), host.max_num_scheduled_tokens)
        if blocks.free() >= most + blocks.of_entering([*_waiting(joining), *looking]):
            return False
        if self._make_room(blocks.of_entering(_waiting(joining))):
            return True
        while joining and blocks.of_entering(_waiting(joining)) > self.left():
            self._groups.withdraw(joining.pop())
        if not looking:
            return False
        left = self.left()
        while looking and blocks.of_entering([*_waiting(joining), *looking]) > left:
            looking.pop()
        if looking:
            return False
        units = self._groups.units(self._host.running)
        waits = bool(units) and all(map(self._is_stuck, units))
        if waits:
            host.preempt(max(units, key=self.eviction_key))
        return waits

    def left(self) -> int:
        """Free blocks minus those that running requests will ask for."""
        host = self._host
        budget, chunk = host.max_num_scheduled_tokens, Chunk.of(host)
        # vLLM counts a step when it begins one.
        step = host.current_step + 1
        need = self._blocks.of_step(host.running, self._groups.held, budget, chunk, step)
        return self._blocks.free() - need

    def must_wait(self) -> bool:
        """Whether running requests need blocks that only come free later.

        Steps in flight, or requests that have ended and are being sent, still hold them.
        """
        host, blocks = self._host, self._blocks
        if not self._transfer.is_on:
            return False
        most = blocks.most_of_step(len(host.running), host.max_num_scheduled_tokens)
        return blocks.free() < most and self.left() < 0

    def _left_soon(self) -> int:
        return self.left() + self._transfer.coming()

    def eviction_key(self, unit: Unit) -> tuple[int, float]:
        """Sort key of a unit; the largest is preempted first: the least urgent, then the newest."""
        by_priority = self._host.policy == SchedulingPolicy.PRIORITY
        return (unit[0].priority if by_priority else 0, unit[0].arrival_time)

    def _make_room(self, extra: int) -> bool:
        """Preempts until running requests and ``extra`` blocks fit; returns whether it has."""
        if extra <= self._left_soon() or (self._drafts.drop() and extra <= self._left_soon()):
            return False
        preempted = False
        units = sorted(self._groups.units(self._host.running), key=self.eviction_key)
        while extra > self._left_soon():
            others = len(units) > 1 or self._transfer.holds()
            if units and (others or self._is_stuck(units[0])):
                self._host.preempt(units.pop())
            elif not (units and self._alarms.give_up_newest()):
                break
            preempted = True
        return preempted

    def _is_stuck(self, unit: Unit) -> bool:
        """Whether all admitted members of a unit are held, so that it waits for the others."""
        held = self._groups.held
        return all(
            m.request_id in held and remaining_tokens(m) == 1
            for m in unit
            if m.status == RequestStatus.RUNNING
        )


def _waiting(joining: list[Group]) -> list[Request]:
    """Members of joining groups that are not running yet."""
    return [m for group in joining for m in group.members if m.status != RequestStatus.RUNNING]
