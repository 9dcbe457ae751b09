"""Decides how many of the proposed draft tokens are verified in a step.

Verifying a draft token costs time, more in a full step than in an empty one, and only accepted
drafts save any. A step takes those drafts with which it makes the most tokens per second: none
where verification costs more than it saves, and first the likely drafts of units with few rows.

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
from divserve.engine.scheduler.step_cost import ENOUGH, STALE_STEPS, Extra, StepCost

__all__ = ["OPTION", "Governor", "Proposal"]

OPTION = "divserve_draft_governor"
"""Key in vLLM's ``additional_config``; false: everything that is proposed is verified."""
ALLOWANCE = 0.01
"""Share of the time that may be spent on measuring."""
FIRST_STEPS = 5.0
"""The allowance at the beginning, in steps."""
MOST_STEPS = 10.0
"""The largest allowance, in steps."""
UNSEEN_STEPS = 64
"""After so many steps without a trial, a unit's acceptance should be measured again."""
CLOSE, CLOSE_STEPS = 0.2, 8
"""A plan that loses less than this share of a step is measured after so many steps."""
ROUNDS = 8
"""More than the search for the best rate needs."""


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


@dataclass(frozen=True)
class _Plan:
    """Drafts of each unit to verify, and what to expect from it."""

    lengths: list[int]
    tokens: float
    """Of all units together."""
    seconds: float

    def loss(self, best: _Plan) -> float:
        """Seconds that it takes longer than the best plan takes for as many tokens."""
        return max(0.0, self.seconds - self.tokens * best.seconds / best.tokens)


class Governor:
    """Chooses the drafts of each step.

    Args:
        most: the longest draft.
        clock: seconds, monotonic.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self.cost = StepCost()
        self._everybody = Acceptance(most)
        self._units: dict[str, Acceptance] = {}
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
        search = _Search([self._expected(p) for p in proposals], units, plain, extra)
        best = search.best()
        if self._allowance is None:
            self._allowance = FIRST_STEPS * plain
        self._allowance = min(self._allowance, MOST_STEPS * plain)
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
        unit, place = self._units.get(proposal.name), made.req_id_to_index.get(proposal.name)
        if unit is None or place is None or not made.sampled_token_ids:
            return
        sampled = made.sampled_token_ids[place]
        if not sampled:
            return
        verified = len(output.scheduled_spec_decode_tokens.get(proposal.name, ()))
        beyond = None
        if verified < len(proposal.drafts) and proposal.drafts[verified] >= 0:
            beyond = proposal.drafts[verified] == sampled[-1]
        unit.observe(verified, min(len(sampled) - 1, verified), beyond)

    def _expected(self, proposal: Proposal) -> _Expected:
        unit = self._units.get(proposal.name)
        if unit is None:
            unit = self._units[proposal.name] = Acceptance(self._most, self._everybody)
        survival = unit.survival()[: len(proposal.drafts)]
        return _Expected(survival, proposal.rows, unit.unseen >= UNSEEN_STEPS)

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

    def _trial(self, search: _Search, best: _Plan, rows: int) -> _Plan | None:
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


def _interval(other: _Plan, best: _Plan) -> int:
    """Steps between two measurements of a plan that is not the best one.

    A plan that is nearly as good is measured often: it costs little, and may be the better one.
    """
    return CLOSE_STEPS if other.loss(best) < CLOSE * best.seconds else STALE_STEPS


class _Expected(NamedTuple):
    """What a unit's drafts are expected to do."""

    survival: Sequence[float]
    rows: int
    unseen: bool
    """Whether its acceptance has not been measured for long."""


class _Search:
    """Finds the drafts of one step.

    Args:
        expected: of each unit with drafts.
        units: all units.
        plain: seconds of the step without drafts.
        extra: what drafts add.
    """

    def __init__(
        self, expected: Sequence[_Expected], units: int, plain: float, extra: Extra
    ) -> None:
        self._expected, self._extra = expected, extra
        self._units, self._plain = max(units, len(expected)), max(plain, 1e-9)

    def plan(self, lengths: list[int]) -> _Plan:
        """What to expect with so many drafts of each unit."""
        pairs = list(zip(self._expected, lengths, strict=True))
        drafts = sum(unit.rows * length for unit, length in pairs)
        accepted = sum(sum(unit.survival[:length]) for unit, length in pairs if length)
        return _Plan(lengths, self._units + accepted, self._plain + self._extra.of(drafts))

    def best(self) -> _Plan:
        """The plan with the most tokens per second (Dinkelbach's method for a ratio).

        At a given rate, a draft pays if it is accepted more often than tokens are made elsewhere
        in the time that it takes. Taking just these gives a better rate, until nothing changes.
        """
        best = self.plan([0] * len(self._expected))
        for _ in range(ROUNDS):
            price = self._extra.each * best.tokens / best.seconds
            plan = self.plan([_worth(unit, price) for unit in self._expected])
            if plan.tokens * best.seconds <= best.tokens * plan.seconds * (1 + 1e-9):
                break
            best = plan
        return best

    def longest(self, best: _Plan, allowance: float, short: bool) -> _Plan | None:
        """The most drafts that the allowance pays for, likely ones first.

        Args:
            best: the best plan.
            allowance: seconds.
            short: only one draft.
        """
        order = sorted(
            range(len(self._expected)),
            key=lambda i: self._expected[i].rows / (self._expected[i].survival[0] + 1e-9),
        )
        lengths, left = [0] * len(order), allowance - self._extra.fixed
        for i in order:
            unit = self._expected[i]
            for chance in unit.survival:
                left -= self._extra.each * unit.rows - chance * best.seconds / best.tokens
                if left < 0:
                    return self.plan(lengths) if any(lengths) else None
                lengths[i] += 1
                if short:
                    return self.plan(lengths)
        return self.plan(lengths)

    def likely(self) -> _Plan | None:
        """The drafts that are rather accepted than not, of the units with the fewest rows."""
        least = min(unit.rows for unit in self._expected)
        lengths = [
            sum(chance > 0.5 for chance in unit.survival) if unit.rows == least else 0
            for unit in self._expected
        ]
        return self.plan(lengths) if any(lengths) else None

    def unseen(self, best: _Plan) -> _Plan | None:
        """The best plan with a first draft for units whose acceptance may have changed."""
        price = self._extra.each * best.tokens / best.seconds
        lengths = [
            1 if not length and unit.unseen and price * unit.rows < 1 else length
            for unit, length in zip(self._expected, best.lengths, strict=True)
        ]
        return None if lengths == best.lengths else self.plan(lengths)


def _worth(unit: _Expected, price: float) -> int:
    """How many drafts of a unit are worth their price."""
    least = price * unit.rows
    length = 0
    for chance in unit.survival:
        if chance <= least:
            break
        length += 1
    return length
