"""The workers' reports of a step: which tokens may be sent, and what is sent with them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import STATISTICS, LookRow, LookState, Read
from divserve.decoding.spec import Top
from divserve.engine.faults import LOST, NOT_NUMBERS
from divserve.engine.reported import Report, Statistics, guidance_of
from divserve.engine.scheduler.alarms import Alarms
from divserve.engine.scheduler.endings import Endings
from divserve.engine.scheduler.figures import Figures
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.switch_rules import SwitchRules

__all__ = ["Reports"]

UNKNOWN = "look_back could not compare a step with the earlier ones; the request was stopped"


class Reports:
    """Passes the statistics of one update from the workers to the outputs.

    Args:
        groups: all groups.
        alarms: is told about requests that have taken a candidate.
        endings: is told about requests that fail.
        figures: is told about tokens that are taken back.
        switch_rules: knows whether a segment has ended because of its rule.
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
        """Steps in flight, each with the groups that run in it."""
        self._of_step: list[Group] = []
        """The groups that ran in the step of this update."""
        self.statistics: Mapping[str, list[Statistics]] = {}
        """Statistics of this update, by primary request id: of each position where it may have
        taken a token."""
        self._tops: Mapping[str, list[Top]] = {}
        """Beside them, the likeliest tokens, of the groups that ask for these."""
        self._reads: Mapping[str, Read] = {}
        """Texts that were read to their end before this update, by primary request id."""
        self._drafts: Mapping[str, list[int]] = {}
        """Draft tokens of this update's step, by request id."""

    def expect(self, scheduler_output: SchedulerOutput) -> None:
        """A step has been scheduled: every running group owes a report of each token."""
        self._steps.append((scheduler_output, self._groups.running()))

    def read(
        self, scheduler_output: SchedulerOutput, runner_output: ModelRunnerOutput
    ) -> list[tuple[Request, tuple[int, ...]]]:
        """Takes back tokens that must not be sent, before vLLM sees them.

        Returns:
            Requests that have raised an alarm, and their candidates.
        """
        guidance = guidance_of(runner_output)
        self.statistics, self._figures.kernel_s = guidance.statistics, guidance.seconds
        self._tops = guidance.tops
        self._reads = guidance.reads
        self._drafts = scheduler_output.scheduled_spec_decode_tokens
        self._of_step = self._groups_of(scheduler_output)
        statistics, broken, alarmed = guidance.statistics, guidance.broken, []
        for group in self._of_step:
            name = group.name
            if name in statistics and name not in broken and not group.looks_back:
                continue
            if self._groups.get(name) is not group:
                # It has ended in the meantime.
                continue
            if name not in statistics or name in broken:
                why = NOT_NUMBERS if name in broken else LOST
                self._take_back(group, why, scheduler_output, runner_output)
            if name in statistics and group.looks_back:
                alarmed += self._look(group, statistics[name][0], runner_output)
        return alarmed

    def _groups_of(self, scheduler_output: SchedulerOutput) -> list[Group]:
        """The groups that ran in a step."""
        for place, (output, groups) in enumerate(self._steps):
            if output is scheduler_output:
                for _ in range(place + 1):
                    self._steps.popleft()
                return groups
        return []

    def _take_back(
        self,
        group: Group,
        why: str,
        scheduler_output: SchedulerOutput,
        runner_output: ModelRunnerOutput,
    ) -> None:
        """Takes back the tokens of a group that has no or broken statistics, and fails it."""
        tokens = runner_output.sampled_token_ids
        for member in group.members if tokens else ():
            request_id = member.request_id
            if request_id not in scheduler_output.num_scheduled_tokens:
                continue
            row = runner_output.req_id_to_index[request_id]
            if tokens[row] and member is not group.grounding:
                self._figures.taken_back(group, request_id, len(tokens[row]), why)
                _empty(group, request_id, runner_output)
                self._endings.failed[group.name] = why

    def _look(
        self, group: Group, statistics: Statistics, runner_output: ModelRunnerOutput
    ) -> list[tuple[Request, tuple[int, ...]]]:
        """Takes back the token of an alarm; returns its candidates if they are to be read."""
        look, request = LookRow.read(statistics[len(STATISTICS) :]), group.primary
        broken = math.isnan(look.kl_min) or any(map(math.isnan, look.kls))
        if broken:
            self._endings.failed[group.name] = UNKNOWN
        if broken or look.state == LookState.ALARM:
            _empty(group, group.name, runner_output)
        if look.state == LookState.ALARM and not broken and _is_current(request):
            return [(request, look.tokens)]
        if look.state == LookState.CHOSEN:
            self._alarms.call_off(group.name)
        return []

    def put_on(self, outputs: list[EngineCoreOutput]) -> list[EngineCoreOutput]:
        """Adds reports to outputs, and drops the outputs of rows that the scheduler has made."""
        failed, figures = self._endings.failed, self._figures
        is_rare = bool(failed or self._alarms or self._switch_rules)
        # Ready groups are at the front of the batch, so all outputs behind theirs are plain.
        left = sum(len(group.members) for group in self._of_step)
        kept: list[EngineCoreOutput] = []
        for place, output in enumerate(outputs):
            if not left and not is_rare:
                return kept + outputs[place:]
            request_id = output.request_id
            group = self._groups.get(request_id)
            if group is None:
                if is_rare and self._alarms.of_probe(request_id) is not None:
                    continue
                if request_id in failed:
                    self._report(output, None).put_on(output)
            else:
                left -= 1
                if group.name != request_id:
                    continue
                if group.of_prompt is not None and output.new_token_ids:
                    output.new_prompt_logprobs_tensors = group.of_prompt[0]
                    output.prompt_token_id_logprobs = group.of_prompt[1]
                    group.of_prompt = None
                if is_rare or figures.kernel_s is not None or group.waited is not None:
                    self._report(output, group).put_on(output)
                elif output.new_token_ids:
                    self._of_tokens(output, Report()).put_on(output)
            kept.append(output)
        return kept

    def _of_tokens(self, output: EngineCoreOutput, report: Report) -> Report:
        """Adds the statistics of an output's tokens; drafts behind them have been rejected."""
        found = self.statistics.get(output.request_id, [])
        report.statistics = tuple(found[: len(output.new_token_ids)])
        if tops := self._tops.get(output.request_id):
            report.tops = tuple(tops[: len(output.new_token_ids)])
        report.drafted = len(self._drafts.get(output.request_id, ()))
        report.read = self._reads.get(output.request_id)
        return report

    def _report(self, output: EngineCoreOutput, group: Group | None) -> Report:
        """The report on a guided or rejected request for the front end."""
        request_id, report = output.request_id, Report()
        if group is not None and output.new_token_ids:
            # `read` has left no token without them; the front end checks again.
            self._of_tokens(output, report)
            switch = self._switch_rules.take_switch(request_id)
            # A grammar may have ended the request for another reason in the same update.
            if switch is not None and output.finish_reason == FinishReason.STOP:
                report.switch = switch
        if (why := self._endings.failed.pop(request_id, None)) is not None:
            report.error, report.refused = why, group is None
        self._figures.add_to(report, group, request_id)
        return report


def _empty(group: Group, request_id: str, runner_output: ModelRunnerOutput) -> None:
    """Takes the token of a row back. vLLM wants the log-probs of a prompt only beside a token."""
    runner_output.sampled_token_ids[runner_output.req_id_to_index[request_id]] = []
    tensors = runner_output.prompt_logprobs_dict.pop(request_id, None)
    of_ids = runner_output.prompt_token_id_logprobs_dict.pop(request_id, None)
    if tensors is not None or of_ids is not None:
        group.of_prompt = tensors, of_ids


def _is_current(request: Request) -> bool:
    """Whether the request's step is still valid, and not from before a preemption."""
    return bool(request.status == RequestStatus.RUNNING and request.num_stale_output_tokens == 0)
