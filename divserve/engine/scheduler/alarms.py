"""Look-back decoding: an alarm's candidates are read by probes, rows of our own.

A step that comes too close to an earlier one reports an *alarm* and its k most likely tokens. Its
token is taken back, and its request *waits* with its KV blocks. Each candidate gets a *probe*: a
request made of the text so far and the candidate, which starts from the waiting request's blocks
(vLLM copies the last, partly filled one) and reads a single token. In the step of the last probes
the waiting request reads its own last token again and takes one of the candidates. So an alarm
costs one extra step with k + 1 rows, or several steps if fewer rows are free. With asynchronous
scheduling the row already in flight is discarded first: two more steps.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request, RequestStatus

from divserve.engine.scheduler.blocks import Blocks
from divserve.engine.scheduler.group import ADMISSIBLE
from divserve.engine.scheduler.host import Host
from divserve.engine.scheduler.members import probe

__all__ = ["Alarm", "Alarms"]


class Alarm:
    """A request that waits for its probes."""

    def __init__(self, primary: Request, tokens: tuple[int, ...], block_size: int) -> None:
        copied = primary.num_tokens // block_size * block_size
        self.primary = primary
        self.probes = tuple(probe(primary, i, token, copied) for i, token in enumerate(tokens))

    def waiting(self) -> list[Request]:
        """Probes that have not been read yet."""
        return [p for p in self.probes if p.status in ADMISSIBLE]

    def runs(self) -> bool:
        """Whether any of its requests is running."""
        return any(r.status == RequestStatus.RUNNING for r in (self.primary, *self.probes))

    def ready(self) -> bool:
        """Whether its request waits and no stale output of its rows is still in flight."""
        rows = (self.primary, *self.probes)
        return self.primary.status == RequestStatus.PREEMPTED and not any(
            row.num_stale_output_tokens for row in rows
        )


class Alarms:
    """All alarms of a scheduler, and the probes of each.

    Args:
        host: the scheduler.
        blocks: the KV cache.
    """

    def __init__(self, host: Host, blocks: Blocks) -> None:
        self._host, self._blocks = host, blocks
        self._alarms: dict[str, Alarm] = {}
        """By the id of the waiting request, oldest first."""
        self._probes: dict[str, Alarm] = {}
        """By the ids of the probes."""
        self._unwanted: list[Request] = []
        """Probes whose request has ended or starts over."""

    def __len__(self) -> int:
        return len(self._alarms) + len(self._probes)

    def waits(self, request_id: str) -> bool:
        """Whether a request waits for its probes."""
        return request_id in self._alarms

    def of_probe(self, request_id: str) -> Alarm | None:
        """The alarm that a probe belongs to; None for other requests."""
        return self._probes.get(request_id)

    def enter(self, rows: int) -> list[Request]:
        """Probes to admit in this step, and waiting requests that follow all of their probes.

        Args:
            rows: number of free rows.
        """
        if not self._alarms:
            return []
        self._unblock()
        # Each running request may ask for a block in this step.
        left = self._blocks.free() - self._blocks.watermark - len(self._host.running)
        entering: list[Request] = []
        for alarm in self._alarms.values():
            if not alarm.ready():
                continue
            waiting = alarm.waiting()
            most = max(0, min(rows - len(entering), max(left, 1 - len(entering))))
            probes = waiting[:most]
            left -= len(probes)
            entering += probes
            if len(probes) == len(waiting) and len(entering) < rows:
                entering.append(alarm.primary)
        return entering

    def _unblock(self) -> None:
        """If only waiting requests hold memory, restarts the newest until one can go on."""
        while not self._host.running and len(self._alarms) > 1:
            if self._blocks.free() >= self._blocks.watermark + self._blocks.of_tokens(1):
                break
            self.give_up_newest()

    def give_up_newest(self) -> bool:
        """Restarts the newest request that waits with its blocks; False if there is none."""
        idle = next((a for a in reversed(self._alarms.values()) if not a.runs()), None)
        if idle is not None:
            self._give_up(idle.primary)
        return idle is not None

    def give_up_waiting(self) -> None:
        """Restarts every request that waits with its blocks."""
        for alarm in [*self._alarms.values()]:
            if alarm.primary.status == RequestStatus.PREEMPTED:
                self._give_up(alarm.primary)

    def _give_up(self, request: Request) -> None:
        host = self._host
        self.call_off(request.request_id)
        host.free_blocks(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        for queue in (host.kv_holding_waiting, host.waiting):
            queue.remove_requests([request])
        host.waiting.prepend_request(request)
        # It may be admitted again in this step; the workers then need all of its tokens.
        host.prev_step_scheduled_req_ids.discard(request.request_id)

    def line_up(self, entering: list[Request]) -> None:
        """Puts requests where vLLM looks first, in this order."""
        host = self._host
        for queue in (host.waiting, host.kv_holding_waiting):
            queue.remove_requests(entering)
        if host.policy == SchedulingPolicy.PRIORITY:
            # A priority queue would not keep a request behind all of its probes.
            host.kv_holding_waiting = create_request_queue(SchedulingPolicy.FCFS)
        for request in reversed(entering):
            host.kv_holding_waiting.prepend_request(request)

    def chosen(self, entered: Iterable[Request], scheduled: Iterable[str]) -> frozenset[str]:
        """Requests that take one of their candidates in a step.

        Args:
            entered: what `enter` returned for this step.
            scheduled: ids of all requests in the step.
        """
        if not self._alarms:
            return frozenset()
        entering = {request.request_id for request in entered}
        return frozenset(self._alarms.keys() & entering & set(scheduled))

    def wait(self, request: Request, tokens: tuple[int, ...]) -> None:
        """Makes a request wait for its probes, with its blocks and one token to read again.

        Args:
            request: the request whose token has been taken back.
            tokens: the candidates.
        """
        host = self._host
        if request.is_finished() or request.status != RequestStatus.RUNNING:
            return
        host.running.remove(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = request.num_tokens - 1
        request.spec_token_ids = []
        request.drop_stale_output = True
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        # Model runner V2 then drops it until it is scheduled again.
        host.reset_preempted_req_ids.add(request.request_id)
        host.kv_holding_waiting.add_request(request)
        alarm = self._alarms[request.request_id] = Alarm(request, tokens, host.block_size)
        for one in alarm.probes:
            self._probes[one.request_id] = alarm
            host.add_row(one)

    def call_off(self, request_id: str) -> None:
        """Cancels a request's alarm, if it has one; `end_unwanted` ends the remaining probes."""
        if (alarm := self._alarms.pop(request_id, None)) is not None:
            self._unwanted += [p for p in alarm.probes if not p.is_finished()]

    def end_unwanted(self) -> None:
        """Ends probes that no request waits for, and forgets those that have ended."""
        unwanted, self._unwanted = self._unwanted, []
        self._host.end_rows(
            [p.request_id for p in unwanted if not p.is_finished()],
            RequestStatus.FINISHED_ABORTED,
        )
        if self._probes:
            self._probes = {
                name: alarm
                for name, alarm in self._probes.items()
                if name in self._host.requests or alarm.primary.request_id in self._alarms
            }

    def blocks_of(
        self, probe: Request, held: Iterable[Iterable[object]]
    ) -> tuple[list[object], ...]:
        """The blocks that a probe starts from, for each KV cache group.

        Args:
            probe: the probe.
            held: vLLM's blocks of the waiting request, for each KV cache group.
        """
        count = cdiv(probe.num_tokens - 1, self._host.block_size)
        return tuple(list(blocks)[:count] for blocks in held)
