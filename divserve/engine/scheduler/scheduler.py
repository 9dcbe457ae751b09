"""The lock-step scheduler: a guided token is sampled only in a step that holds its whole group.

Each step: groups whose members all have just their sampling token left are *released*; they move to
the front of the running list, members side by side, so that neither the token budget nor a
preemption can come between them. All other members are *held* one token back. One-token members
*join* in the step of their group's first sample. What the workers report of each guided token
travels to the front end with the token; a token without a report, or of logits that are not
numbers, ends its request with an error.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import LookRow
from divserve.engine.faults import LOST, why_failed
from divserve.engine.order import Report, guidance_of
from divserve.engine.scheduler.ending import EndingMixin
from divserve.engine.scheduler.group import ADMISSIBLE, Group

__all__ = ["LOST", "AsyncLockstepScheduler", "LockstepScheduler"]


class LockstepMixin(EndingMixin):
    """Release, join and report of groups."""

    waiting: Any
    running: list[Request]
    _pause_state: PauseState

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """One step. Without groups it is vLLM's own."""
        if not self._groups:
            return super().schedule(throttle_prefills)
        self._blocked.clear()
        if self._pause_state == PauseState.PAUSED_NEW:
            self._withdraw_partials()
        self._evict_extra_partials()
        joining = self._find_joins()
        looking = self._look_ahead(self._free_rows() - len(joining))
        self._release(joining)
        preempted = self._preflight(joining, looking)
        if preempted:
            for member in joining:
                self._hold(self._groups[member.request_id])
            joining, looking = [], []
        output = self._schedule_step(throttle_prefills, joining, looking, preempted)
        self._mark_chosen(output, looking)
        self._note_admissions()
        return output

    def _free_rows(self) -> int:
        """How many requests can be admitted beside those that run."""
        rows = self.max_num_active_reqs - len(self.running) - self.num_waiting_for_streaming_input
        return int(rows)

    def _schedule_step(
        self,
        throttle_prefills: bool,
        joining: list[Request],
        looking: list[Request],
        preempted: bool,
    ) -> SchedulerOutput:
        pause, line, holding = self._pause_state, self.waiting, self.kv_holding_waiting
        if preempted and pause == PauseState.UNPAUSED:
            # As in vLLM: a step that preempted admits nobody.
            self._pause_state = PauseState.PAUSED_NEW
        if joining or looking:
            self._line_up_ahead(looking)
            self._joining = {m.request_id for m in (*joining, *looking)}
            self._budget = self.max_num_scheduled_tokens - len(self._joining)
        if first := joining or self._overtaken():
            self._line_up(first)
        try:
            return super().schedule(throttle_prefills)
        finally:
            self._pause_state = pause
            self._joining = set()
            for ours, theirs in ((self.waiting, line), (self.kv_holding_waiting, holding)):
                if ours is not theirs:
                    for request in ours:
                        theirs.add_request(request)
            self.waiting, self.kv_holding_waiting = line, holding

    def _line_up(self, members: list[Request]) -> None:
        """Puts waiting members at the head of the line for this step."""
        self.waiting.remove_requests(members)
        if self.policy == SchedulingPolicy.PRIORITY:
            # A priority queue has no head to put them at: for this step they are the whole line.
            self.waiting = create_request_queue(SchedulingPolicy.FCFS)
        for member in reversed(members):
            self.waiting.prepend_request(member)

    def _overtaken(self) -> list[Request]:
        """Members that the half-admitted group still lacks, if more urgent requests may overtake.

        The admitted ones hold memory until the others are in; a request in front of them that needs
        this memory would wait for ever.
        """
        if self.policy != SchedulingPolicy.PRIORITY or self._partial is None:
            return []
        return [m for m in self._partial.members if m.status in ADMISSIBLE]

    def _evict_extra_partials(self) -> None:
        """Keeps the oldest partly admitted group; two could wait for each other for ever."""
        partial: dict[int, Group] = {}
        for request in self.running:
            group = self._groups.get(request.request_id)
            if group is not None and group.lacks_prefill():
                partial[id(group)] = group
        oldest_first = sorted(partial.values(), key=lambda g: self._eviction_key(g.members))
        for group in oldest_first[1:]:
            self._preempt_unit(group.members)
        self._partial = oldest_first[0] if oldest_first else None

    def _withdraw_partials(self) -> None:
        """Sends groups back of which a part is not admitted: such a pause waits for what runs."""
        groups = [self._groups.get(request.request_id) for request in self.running]
        for group in {id(group): group for group in groups if group is not None}.values():
            if any(m.status in ADMISSIBLE for m in group.members):
                self._preempt_unit(group.members)

    def _find_joins(self) -> list[Request]:
        """One-token members whose groups can sample in this step, as far as slots reach."""
        held_up = any(r.request_id not in self._alarms for r in self.kv_holding_waiting)
        if self._pause_state != PauseState.UNPAUSED or held_up:
            return []
        slots = self._free_rows()
        joining: list[Request] = []
        for group in self._one_token.values():
            members = group.joinable()
            if members and len(joining) + len(members) <= slots:
                joining.extend(members)
        return joining

    def _release(self, joining: list[Request]) -> None:
        """Decides who samples in this step and puts them first, members side by side."""
        entering = [self._groups[m.request_id] for m in joining]
        groups = {id(group): group for group in entering}
        for request in self.running:
            group = self._groups.get(request.request_id)
            if group is not None and group.primary is request and group.armed():
                groups[id(group)] = group
        self._released = {m.request_id for g in groups.values() for m in g.members}
        first = [m for g in groups.values() for m in g.members if m.status == RequestStatus.RUNNING]
        if self.running[: len(first)] != first:
            rest = [r for r in self.running if r.request_id not in self._released]
            self.running = first + rest

    def _leave_out(self, group: Group, joining: list[Request]) -> None:
        joining[:] = [m for m in joining if self._groups[m.request_id] is not group]
        self._hold(group)

    def _hold(self, group: Group) -> None:
        self._released.difference_update(m.request_id for m in group.members)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """vLLM's update; guide rows leave no output, primaries' outputs carry their statistics."""
        guidance = guidance_of(model_runner_output)
        self._reports = reports = guidance.statistics
        self._seconds = guidance.seconds
        alarmed: list[tuple[Request, LookRow]] = []
        if self._groups:
            self._stop_unguided(scheduler_output, model_runner_output, reports)
            alarmed = self._take_back(model_runner_output, reports)
        if self._failed:
            self.grammar_compile_error_reqs.update(self._failed)
        self._updating = True
        try:
            outputs: dict[int, EngineCoreOutputs] = super().update_from_output(
                scheduler_output, model_runner_output
            )
        finally:
            self._updating = False
        if self._groups or self._failed:
            for step in outputs.values():
                step.outputs = [o for o in step.outputs if self._annotate(o, reports)]
        if alarmed:
            # A request that began again may have left probes of the names that come now.
            self._end_orphans()
        for request, row in alarmed:
            self._wait(request, row)
        self._settle(outputs)
        return outputs

    def _stop_unguided(
        self,
        scheduler_output: SchedulerOutput,
        runner_output: ModelRunnerOutput,
        reports: dict[str, tuple[float, ...]],
    ) -> None:
        """Takes back tokens of members without a report or with a broken one; they fail."""
        tokens = runner_output.sampled_token_ids
        if not tokens:
            return
        for request_id in scheduler_output.num_scheduled_tokens:
            group = self._groups.get(request_id)
            if group is None or group.reads(request_id):
                continue
            why = why_failed(reports.get(group.primary.request_id))
            if why is None:
                continue
            row = runner_output.req_id_to_index[request_id]
            if tokens[row]:
                self._note_unguided(group, request_id, len(tokens[row]), why)
                tokens[row] = []
                self._failed[group.primary.request_id] = why

    def _annotate(self, output: EngineCoreOutput, reports: dict[str, tuple[float, ...]]) -> bool:
        """Adds statistics or the reason of a failure; False for the output of a row of ours."""
        group = self._groups.get(output.request_id)
        is_guide = group is not None and group.primary.request_id != output.request_id
        if is_guide or output.request_id in self._probes:
            return False
        report = Report()
        if group is not None and output.new_token_ids:
            # `_stop_unguided` leaves no token without a row; the front end checks it once more.
            report.statistics = reports.get(output.request_id)
            state = self._switched.pop(output.request_id, None)
            # A grammar may have ended the request for another reason in the same update.
            if state is not None and output.finish_reason == FinishReason.STOP:
                report.switch = state
        if (why := self._failed.pop(output.request_id, None)) is not None:
            report.error, report.refused = why, group is None
        self._add_figures(report, group, output.request_id)
        report.put_on(output)
        return True


class LockstepScheduler(LockstepMixin, Scheduler):
    """For synchronous scheduling."""


class AsyncLockstepScheduler(LockstepMixin, AsyncScheduler):
    """For asynchronous scheduling (one step scheduled while the last still runs)."""
