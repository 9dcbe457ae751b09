"""Decides how many of the proposed draft tokens are verified in a step.

Verifying a draft token costs time, more in a full step than in an empty one, and only accepted
drafts save any. A step takes those drafts with which it makes the most tokens per second: none
where verification costs more than it saves, and first the likely drafts of units with few rows.

An amateur's drafts (`divserve.engine.worker.amateur_drafts`) are made in the step that verifies
them, as many as were chosen here, so that the duration of the step includes that of making them.

Drafts that are proposed in the same number are expected to be alike: our look-up proposes fewer
after a short match, and these are accepted much less often.

Durations and acceptance are measured while the server runs. What only serves to measure is paid
from an allowance of one percent of the time, so that drafts that never pay cost hardly anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from divserve.engine.scheduler.acceptance import Acceptance
from divserve.engine.scheduler.draft_search import Expected, Plan, Search
from divserve.engine.scheduler.step_cost import ENOUGH, STALE_STEPS, Extra, StepCost

__all__ = ["OPTION", "Governor", "Proposal"]

OPTION = "divserve_draft_governor"
"""Key in vLLM's ``additional_config``; false: everything that is proposed is verified."""
ALLOWANCE = 0.01
"""Share of the time that may be spent on measuring."""
MOST_STEPS = 3.0
"""The largest allowance, in steps; the first is as large."""
UNSEEN_STEPS = 64
"""After so many steps without a trial, a unit's acceptance should be measured again."""
CLOSE, CLOSE_STEPS = 0.2, 8
"""A plan that loses less than this share of a step is measured after so many steps."""


class Proposal(NamedTuple):
    """The drafts of one unit: a plain request or a group, whose rows verify the same drafts."""

    name: str
    """Request id of the plain request or primary."""
    rows: int
    drafts: list[int]
    """Token ids; -1 where only the worker knows them. Never changed."""


@dataclass(frozen=True)
class _Step:
    """A step in flight."""

    output: Any
    at: float
    decodes: bool
    """Whether all of its tokens are next tokens and drafts."""
    proposals: Sequence[Proposal]


class Governor:
    """Chooses the drafts of each step.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.cost = StepCost()
        self._everybody: dict[int, Acceptance] = {}
        self._units: dict[str, dict[int, Acceptance]] = {}
        self._steps: deque[_Step] = deque()
        self._proposals: Sequence[Proposal] = ()
        self._updated = 0.0
        self._allowance: float | None = None

    def __len__(self) -> int:
        """Units that are known."""
        return len(self._units)

    def choose(self, proposals: Sequence[Proposal], units: int, rows: int) -> list[int]:
        """How many drafts of each unit are verified in the coming step.

        Args:
            proposals: units with drafts.
            units: all that sample in the step, with and without drafts.
            rows: of the step.
        """
        self._proposals = proposals
        none = [0] * len(proposals)
        plain = self.cost.plain(rows) if proposals else None
        if plain is None:
            return none
        # The worst case, as long as it is not known: a step takes as long as its tokens.
        extra = self.cost.extra(rows) or Extra(0.0, plain / rows)
        if self._is_hopeless(proposals, units, rows, extra.each / plain):
            self._proposals = ()
            return none
        search = Search([self._expected(p) for p in proposals], units, plain, extra)
        best = search.best()
        most = MOST_STEPS * plain
        self._allowance = most if self._allowance is None else min(self._allowance, most)
        trial = self._trial(search, best, rows)
        if trial is None:
            return best.lengths
        loss = trial.loss(best)
        if loss > self._allowance:
            return best.lengths
        self._allowance -= loss
        return trial.lengths

    def scheduled(self, output: Any) -> None:
        """A step has been scheduled.

        Args:
            output: vLLM's ``SchedulerOutput``.
        """
        drafts = sum(map(len, output.scheduled_spec_decode_tokens.values()))
        tokens = output.total_num_scheduled_tokens
        decodes = (
            0 < tokens == len(output.num_scheduled_tokens) + drafts
            and not output.scheduled_new_reqs
            and not output.scheduled_cached_reqs.resumed_req_ids
        )
        self._steps.append(_Step(output, self._clock(), decodes, self._proposals))
        self._proposals = ()

    def ran(self, output: Any, made: Any) -> None:
        """A step has run.

        Args:
            output: vLLM's ``SchedulerOutput``.
            made: its ``ModelRunnerOutput``.
        """
        now, before = self._clock(), self._updated
        self._updated = now
        while self._steps:
            step = self._steps.popleft()
            if step.output is output:
                break
        else:
            return
        if step.decodes:
            rows = len(output.num_scheduled_tokens)
            seconds = now - max(before, step.at)
            self.cost.add(rows, output.total_num_scheduled_tokens - rows, seconds)
            if self._allowance is not None:
                self._allowance += ALLOWANCE * seconds
        for proposal in step.proposals:
            self._note(proposal, output, made)

    def forget(self, name: str) -> None:
        """A request has ended."""
        self._units.pop(name, None)

    def _note(self, proposal: Proposal, output: Any, made: Any) -> None:
        """Counts the drafts of a unit that were accepted."""
        seen = self._units.get(proposal.name, {}).get(len(proposal.drafts))
        place = made.req_id_to_index.get(proposal.name)
        if seen is None or place is None or not made.sampled_token_ids:
            return
        sampled = made.sampled_token_ids[place]
        if not sampled:
            return
        verified = len(output.scheduled_spec_decode_tokens.get(proposal.name, ()))
        beyond = None
        if verified < len(proposal.drafts) and proposal.drafts[verified] >= 0:
            beyond = proposal.drafts[verified] == sampled[-1]
        seen.observe(verified, min(len(sampled) - 1, verified), beyond)

    def _expected(self, proposal: Proposal) -> Expected:
        length, unit = len(proposal.drafts), self._units.setdefault(proposal.name, {})
        seen = unit.get(length)
        if seen is None:
            everybody = self._everybody.setdefault(length, Acceptance(length))
            seen = unit[length] = Acceptance(length, everybody)
        return Expected(seen.survival(), proposal.rows, seen.unseen >= UNSEEN_STEPS)

    def _is_hopeless(
        self, proposals: Sequence[Proposal], units: int, rows: int, share: float
    ) -> bool:
        """Whether not even drafts that are certainly accepted would pay, and this is known well.

        Args:
            proposals: units with drafts.
            units: all that sample.
            rows: of the step.
            share: of a step that a draft token takes.
        """
        fewest = min(proposal.rows for proposal in proposals)
        known = len(self.cost.measured(rows)) > 1 and self.cost.extra_age(rows) < STALE_STEPS
        return known and share * units * fewest >= 1

    def _trial(self, search: Search, best: Plan, rows: int) -> Plan | None:
        """Another plan, where there is something to measure."""
        cost, measured = self.cost, self.cost.measured(rows)
        if any(best.lengths):
            none = search.plan([0] * len(best.lengths))
            if cost.plain_age(rows) >= _interval(none, best):
                return none
            if len(measured) == 1:
                return search.plan([(length + 1) // 2 for length in best.lengths])
        elif len(measured) < 2:
            return search.longest(best, self._allowance or 0.0, short=not measured)
        elif (other := search.likely()) is not None:
            unsure = sum(measured) < ENOUGH * len(measured)
            if cost.extra_age(rows) >= (CLOSE_STEPS if unsure else _interval(other, best)):
                return other
        return search.unseen(best)


def _interval(other: Plan, best: Plan) -> int:
    """Steps between two measurements of a plan that is not the best one.

    A plan that is nearly as good is measured often: it costs little, and may be the better one.
    """
    return CLOSE_STEPS if other.loss(best) < CLOSE * best.seconds else STALE_STEPS
