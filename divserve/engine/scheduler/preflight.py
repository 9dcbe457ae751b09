"""KV blocks for the coming step, secured before vLLM's own loop runs.

vLLM preempts one request at a time when blocks run out, and could so split a group in the middle of
a step. Here the need of the whole running list is compared with the free blocks first, and whole
units (one plain request, or all members of a group) are preempted until it fits.
"""

from __future__ import annotations

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.group import Group, remaining_tokens
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host, Unit

__all__ = ["Preflight"]


class Preflight:
    """Preemption in whole units.

    Args:
        host: the scheduler.
        groups: all groups.
        blocks: the KV cache.
        alarms: requests that wait with their blocks.
    """

    def __init__(self, host: Host, groups: Groups, blocks: Blocks, alarms: Alarms) -> None:
        self._host, self._groups, self._blocks, self._alarms = host, groups, blocks, alarms

    def secure(self, joining: list[Group], looking: list[Request]) -> bool:
        """Preempts until running requests and ``joining`` fit; returns whether it preempted.

        Both lists lose at their ends what does not fit all the same: ``joining`` whole groups, and
        ``looking`` first, which can wait for what runs, unless that waits in its turn.

        Args:
            joining: groups of which members of one token are to be admitted.
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
        units = self._units()
        waits = bool(units) and all(map(self._is_stuck, units))
        if waits:
            host.preempt(max(units, key=self.eviction_key))
        return waits

    def left(self) -> int:
        """Free blocks beside what running requests will ask for."""
        host = self._host
        need = self._blocks.of_step(host.running, self._groups.held, host.max_num_scheduled_tokens)
        return self._blocks.free() - need

    def eviction_key(self, unit: Unit) -> tuple[int, float]:
        """Newest first; under the priority policy the least urgent first."""
        by_priority = self._host.policy == SchedulingPolicy.PRIORITY
        return (unit[0].priority if by_priority else 0, unit[0].arrival_time)

    def _make_room(self, extra: int) -> bool:
        """Preempts until running requests and so many blocks fit; whether it preempted."""
        if extra <= self.left():
            return False
        preempted = False
        units = sorted(self._units(), key=self.eviction_key)
        while extra > self.left():
            if len(units) > 1 or (units and self._is_stuck(units[0])):
                self._host.preempt(units.pop())
            elif not (units and self._alarms.give_up_newest()):
                break
            preempted = True
        return preempted

    def _is_stuck(self, unit: Unit) -> bool:
        """Whether all of it that is admitted is held, so that it waits for its other members."""
        held = self._groups.held
        return all(
            m.request_id in held and remaining_tokens(m) == 1
            for m in unit
            if m.status == RequestStatus.RUNNING
        )

    def _units(self) -> list[Unit]:
        units: dict[int, Unit] = {}
        for request in self._host.running:
            group = self._groups.get(request.request_id)
            owner = request if group is None else group
            units.setdefault(id(owner), (request,) if group is None else group.members)
        return list(units.values())


def _waiting(joining: list[Group]) -> list[Request]:
    """The members that join."""
    return [m for group in joining for m in group.members if m.status != RequestStatus.RUNNING]
