"""Scheduler side of look-back decoding: an alarm's candidates are read by rows of our own.

A step that comes too close to an earlier one reports an *alarm* and its k likeliest tokens. Its
token is taken back, and its request *waits* with its KV blocks. For every candidate there is a
probe: a request of the text so far and the candidate, which starts from the waiting one's blocks
(vLLM copies the last, partly filled one) and reads a single token. In the step of the last probes
the waiting request reads its own last token again and takes one of the candidates, so an alarm
costs one step more and k + 1 rows in it, in any number of steps if there is less room. Under
asynchronous scheduling the row that was already on its way is thrown away first: two steps more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import STATISTICS, LookRow, LookState
from divserve.engine.order import set_chosen
from divserve.engine.scheduler.admission import AdmissionMixin
from divserve.engine.scheduler.group import ADMISSIBLE, probe

__all__ = ["LookBackMixin"]

UNKNOWN = "look_back could not compare a step with the earlier ones; the request was stopped"


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
        """Whether any of its requests does."""
        return any(r.status == RequestStatus.RUNNING for r in (self.primary, *self.probes))

    def ready(self) -> bool:
        """Whether nothing of its requests is on its way that is to be thrown away."""
        rows = (self.primary, *self.probes)
        return self.primary.status == RequestStatus.PREEMPTED and not any(
            row.num_stale_output_tokens for row in rows
        )


class LookBackMixin(AdmissionMixin):
    """Alarms, probes, and the step in which a candidate is taken."""

    running: list[Request]
    kv_holding_waiting: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._alarms: dict[str, Alarm] = {}
        """By the id of the waiting request, oldest first."""
        self._probes: dict[str, Alarm] = {}
        """By the probes' ids."""
        self._orphans: list[Request] = []
        """Probes whose request has ended or begins again."""

    def _look_ahead(self, slots: int) -> list[Request]:
        """Probes, and requests behind all of theirs, that enter in this step.

        Args:
            slots: rows that are free.
        """
        self._unblock()
        room = self.kv_cache_manager.block_pool.get_num_free_blocks()
        # Each that runs may ask for a block in this step.
        room -= self.kv_cache_manager.watermark_blocks + len(self.running)
        entering: list[Request] = []
        for alarm in self._alarms.values():
            if not alarm.ready():
                continue
            waiting = alarm.waiting()
            probes = waiting[: max(0, min(slots - len(entering), max(room, 1 - len(entering))))]
            room -= len(probes)
            entering += probes
            if len(probes) == len(waiting) and len(entering) < slots:
                entering.append(alarm.primary)
        return entering

    def _unblock(self) -> None:
        """Where only waiting requests hold memory, the newest begin again until one can go on."""
        manager = self.kv_cache_manager
        while not self.running and len(self._alarms) > 1:
            free = manager.block_pool.get_num_free_blocks()
            if free >= manager.watermark_blocks + self._blocks_for(1):
                break
            self._give_up_waiting()

    def _give_up_waiting(self) -> bool:
        """Has the newest request that waits with its blocks begin again; False if there is none."""
        idle = next((a for a in reversed(self._alarms.values()) if not a.runs()), None)
        if idle is not None:
            self._give_up(idle.primary)
        return idle is not None

    def _give_up(self, request: Request) -> None:
        self._call_off(request.request_id)
        self._free_request_blocks(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        for queue in (self.kv_holding_waiting, self.waiting):
            queue.remove_requests([request])
        self.waiting.prepend_request(request)
        # It may come in again in this step, with all of its tokens to be told of.
        self.prev_step_scheduled_req_ids.discard(request.request_id)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """vLLM's, which sends back only what runs and would find the blocks of the others held."""
        if reset_running_requests:
            for alarm in [*self._alarms.values()]:
                if alarm.primary.status == RequestStatus.PREEMPTED:
                    self._give_up(alarm.primary)
        return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))

    def _line_up_ahead(self, entering: list[Request]) -> None:
        """Puts them where vLLM looks first, in this order."""
        for queue in (self.waiting, self.kv_holding_waiting):
            queue.remove_requests(entering)
        if self.policy == SchedulingPolicy.PRIORITY:
            # As in `_line_up`: a request comes behind all of its probes.
            self.kv_holding_waiting = create_request_queue(SchedulingPolicy.FCFS)
        for request in reversed(entering):
            self.kv_holding_waiting.prepend_request(request)

    def _mark_chosen(self, output: SchedulerOutput, entered: Iterable[Request]) -> None:
        """Tells the workers which rows take one of their candidates in this step."""
        entering = {request.request_id for request in entered}
        chosen = output.num_scheduled_tokens.keys() & self._alarms.keys() & entering
        if chosen:
            set_chosen(output, chosen)

    def _take_back(
        self, runner_output: ModelRunnerOutput, reports: Mapping[str, tuple[float, ...]]
    ) -> list[tuple[Request, LookRow]]:
        """Takes back the tokens of alarms; returns those whose candidates are to be read."""
        alarmed = []
        for request_id, values in reports.items():
            group = self._groups.get(request_id)
            if group is None or not group.looks_back:
                continue
            row, request = LookRow.read(values[len(STATISTICS) :]), group.primary
            broken = math.isnan(row.kl_min) or any(map(math.isnan, row.kls))
            if broken:
                self._failed[request_id] = UNKNOWN
            if broken or row.state == LookState.ALARM:
                runner_output.sampled_token_ids[runner_output.req_id_to_index[request_id]] = []
            if row.state == LookState.ALARM and not broken and _is_current(request):
                alarmed.append((request, row))
            elif row.state == LookState.CHOSEN:
                self._call_off(request_id)
        return alarmed

    def _wait(self, request: Request, row: LookRow) -> None:
        """Has a request wait for its probes, with its blocks and one token to read again."""
        if request.is_finished() or request.status != RequestStatus.RUNNING:
            return
        self.running.remove(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = request.num_tokens - 1
        request.spec_token_ids = []
        request.drop_stale_output = True
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        # Model runner V2 forgets it until it comes back.
        self.reset_preempted_req_ids.add(request.request_id)
        self.kv_holding_waiting.add_request(request)
        alarm = self._alarms[request.request_id] = Alarm(request, row.tokens, self.block_size)
        for one in alarm.probes:
            self._probes[one.request_id] = alarm
            super().add_request(one)

    def _call_off(self, request_id: str) -> None:
        """Forgets the alarm of a request, if it has one; `_end_orphans` ends what is left of it."""
        if (alarm := self._alarms.pop(request_id, None)) is not None:
            self._orphans += [p for p in alarm.probes if not p.is_finished()]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        request_id = request.request_id
        if request_id in self._probes or request_id in self._alarms:
            return request_id in self._joining
        return bool(super()._handle_blocked_waiting_request(request))

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[Any, int, int, bool]:
        alarm = self._probes.get(request.request_id)
        if alarm is None:
            return super()._get_local_prefix_cache_hit(request)
        known = request.num_tokens - 1
        held = self.kv_cache_manager.get_blocks(alarm.primary.request_id).blocks
        blocks = KVCacheBlocks(tuple(list(b)[: cdiv(known, self.block_size)] for b in held))
        return blocks, known, 0, False

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # It begins again from its prompt, and looks at its next step afresh.
        self._call_off(request.request_id)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._call_off(request.request_id)
        freed = super()._free_request(request, *args, **kwargs)
        if request.request_id in self._probes and self.finished_req_ids_dict is not None:
            # The front end has never heard of it.
            self.finished_req_ids_dict[request.client_index].discard(request.request_id)
        return freed

    def _end_orphans(self) -> None:
        """Ends probes that nobody waits for, and forgets those that have ended."""
        orphans, self._orphans = self._orphans, []
        for one in orphans:
            if not one.is_finished():
                super().finish_requests(one.request_id, RequestStatus.FINISHED_ABORTED)
        if self._probes:
            self._probes = {
                name: alarm
                for name, alarm in self._probes.items()
                if name in self.requests or alarm.primary.request_id in self._alarms
            }


def _is_current(request: Request) -> bool:
    """Whether the step of a report was the request's own, not one before a preemption."""
    return bool(request.status == RequestStatus.RUNNING and request.num_stale_output_tokens == 0)
