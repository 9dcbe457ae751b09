"""The drafts of one step with which it makes the most tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from divserve.engine.scheduler.step_cost import Extra

__all__ = ["Expected", "Plan", "Search"]

ROUNDS = 8
"""More than the search for the best rate needs."""
DOUBT = 1.15
"""What drafts add is taken larger than measured: of several plans, those whose costs were measured
too low are chosen more often, and steps take longer by chance more often than shorter."""


@dataclass(frozen=True)
class Plan:
    """Drafts of each unit to verify, and what to expect from it."""

    lengths: list[int]
    tokens: float
    """Of all units together."""
    seconds: float

    def loss(self, best: Plan) -> float:
        """Seconds that it takes longer than the best plan takes for as many tokens."""
        return max(0.0, self.seconds - self.tokens * best.seconds / best.tokens)


class Expected(NamedTuple):
    """What a unit's drafts are expected to do."""

    survival: Sequence[float]
    rows: int
    unseen: bool
    """Whether its acceptance has not been measured for long."""


class Search:
    """Finds the drafts of one step.

    Args:
        expected: of each unit with drafts.
        units: all units.
        plain: seconds of the step without drafts.
        extra: what drafts add.
    """

    def __init__(
        self, expected: Sequence[Expected], units: int, plain: float, extra: Extra
    ) -> None:
        self._expected = expected
        self._extra = Extra(DOUBT * extra.fixed, DOUBT * extra.each)
        self._units, self._plain = max(units, len(expected)), plain

    def plan(self, lengths: list[int]) -> Plan:
        """What to expect with so many drafts of each unit."""
        pairs = list(zip(self._expected, lengths, strict=True))
        drafts = sum(unit.rows * length for unit, length in pairs)
        accepted = sum(sum(unit.survival[:length]) for unit, length in pairs if length)
        return Plan(lengths, self._units + accepted, self._plain + self._extra.of(drafts))

    def best(self) -> Plan:
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

    def longest(self, best: Plan, allowance: float, short: bool) -> Plan | None:
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

    def likely(self) -> Plan | None:
        """The drafts that are rather accepted than not, of the units with the fewest rows."""
        least = min(unit.rows for unit in self._expected)
        lengths = [
            sum(chance > 0.5 for chance in unit.survival) if unit.rows == least else 0
            for unit in self._expected
        ]
        return self.plan(lengths) if any(lengths) else None

    def unseen(self, best: Plan) -> Plan | None:
        """The best plan with a first draft for units whose acceptance may have changed."""
        price = self._extra.each * best.tokens / best.seconds
        lengths = [
            1 if not length and unit.unseen and price * unit.rows < 1 else length
            for unit, length in zip(self._expected, best.lengths, strict=True)
        ]
        return None if lengths == best.lengths else self.plan(lengths)


def _worth(unit: Expected, price: float) -> int:
    """How many drafts of a unit are worth their price."""
    least = price * unit.rows
    length = 0
    for chance in unit.survival:
        if chance <= least:
            break
        length += 1
    return length
