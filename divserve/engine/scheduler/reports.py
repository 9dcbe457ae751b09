"""What the workers report of a step: which tokens may be sent, and what is sent with them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import STATISTICS, LookRow, LookState
from divserve.engine.faults import why_failed
from divserve.engine.order import Report, Statistics, guidance_of
from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.endings import Endings
from divserve.engine.scheduler.figures import Figures
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.switch_rules import SwitchRules

__all__ = ["Reports"]

UNKNOWN = "look_back could not compare a step with the earlier ones; the request was stopped"


class Reports:
    """The statistics of one update, from the workers to the outputs.

    Args:
        groups: all groups.
        alarms: told of requests that have taken a candidate.
        endings: told of requests that fail.
        figures: told of tokens that are taken back.
        switch_rules: asked whether a segment has ended because of its rule.
    """

    def __init__(
        self,
        groups: Groups,
        alarms: Alarms,
        endings: Endings,
        figures: Figures,
        switch_rules: SwitchRules,
    ) -> None:
        self._groups, self._alarms, self._endings = groups, alarms, endings
        self._figures, self._switch_rules = figures, switch_rules
        self._steps: deque[tuple[SchedulerOutput, list[Group]]] = deque()
        """Steps on their way, with the groups that run in them."""
        self.statistics: Mapping[str, Statistics] = {}
        """Those of this update, by primary request id."""

    def expect(self, scheduler_output: SchedulerOutput) -> None:
        """A step has been made: all groups that run owe a report of each token."""
        self._steps.append((scheduler_output, self._groups.running()))

    def read(
        self, scheduler_output: SchedulerOutput, runner_output: ModelRunnerOutput
    ) -> list[tuple[Request, tuple[int, ...]]]:
        """Takes back tokens that may not be sent, before vLLM sees them.

        Returns:
            Requests that have raised alarm, and their candidates.
        """
        guidance = guidance_of(runner_output)
        self.statistics, self._figures.kernel_s = guidance.statistics, guidance.seconds
        groups = self._groups_of(scheduler_output)
        if runner_output.sampled_token_ids:
            self._take_back_unguided(groups, scheduler_output, runner_output)
        return self._take_back_alarms(groups, runner_output)

    def _groups_of(self, scheduler_output: SchedulerOutput) -> list[Group]:
        """The groups that ran in a step and still live."""
        for place, (output, groups) in enumerate(self._steps):
            if output is scheduler_output:
                for _ in range(place + 1):
                    self._steps.popleft()
                return [group for group in groups if self._groups.get(group.name) is group]
        return []

    def _take_back_unguided(
        self,
        groups: list[Group],
        scheduler_output: SchedulerOutput,
        runner_output: ModelRunnerOutput,
    ) -> None:
        """Takes back tokens of members without a report or with a broken one; they fail."""
        tokens = runner_output.sampled_token_ids
        for group in groups:
            why = why_failed(self.statistics.get(group.name))
            if why is None:
                continue
            for member in group.members:
                request_id = member.request_id
                if request_id not in scheduler_output.num_scheduled_tokens:
                    continue
                row = runner_output.req_id_to_index[request_id]
                if tokens[row] and member is not group.grounding:
                    self._figures.taken_back(group, request_id, len(tokens[row]), why)
                    tokens[row] = []
                    self._endings.failed[group.name] = why

    def _take_back_alarms(
        self, groups: list[Group], runner_output: ModelRunnerOutput
    ) -> list[tuple[Request, tuple[int, ...]]]:
        """Takes back the tokens of alarms; returns those whose candidates are to be read."""
        alarmed = []
        for group in groups:
            if not group.looks_back or (found := self.statistics.get(group.name)) is None:
                continue
            look, request = LookRow.read(found[len(STATISTICS) :]), group.primary
            broken = math.isnan(look.kl_min) or any(map(math.isnan, look.kls))
            if broken:
                self._endings.failed[group.name] = UNKNOWN
            if broken or look.state == LookState.ALARM:
                runner_output.sampled_token_ids[runner_output.req_id_to_index[group.name]] = []
            if look.state == LookState.ALARM and not broken and _is_current(request):
                alarmed.append((request, look.tokens))
            elif look.state == LookState.CHOSEN:
                self._alarms.call_off(group.name)
        return alarmed

    def put_on(self, output: EngineCoreOutput) -> bool:
        """Adds statistics or the reason of a failure; False for the output of a row of ours."""
        request_id = output.request_id
        group = self._groups.get(request_id)
        if group is None and request_id not in self._endings.failed:
            return self._alarms.of_probe(request_id) is None
        if group is not None and group.name != request_id:
            return False
        report = Report()
        if group is not None and output.new_token_ids:
            # `read` leaves no token without them; the front end checks it once more.
            report.statistics = self.statistics.get(request_id)
            switch = self._switch_rules.take_switch(request_id)
            # A grammar may have ended the request for another reason in the same update.
            if switch is not None and output.finish_reason == FinishReason.STOP:
                report.switch = switch
        if (why := self._endings.failed.pop(request_id, None)) is not None:
            report.error, report.refused = why, group is None
        self._figures.add_to(report, group, request_id)
        report.put_on(output)
        return True


def _is_current(request: Request) -> bool:
    """Whether the step of a report was the request's own, not one before a preemption."""
    return bool(request.status == RequestStatus.RUNNING and request.num_stale_output_tokens == 0)
