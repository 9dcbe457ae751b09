"""How long a decoding step takes, by its rows and draft tokens.

A step of R rows and d draft tokens takes ``plain(R) + fixed + each · d`` seconds with d > 0: any
draft changes how the whole step samples (``fixed``), and each is one more token to compute. Both
are measured while the server runs, separately for each number of rows: what a token costs depends
on how full the step is.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Extra", "StepCost"]

WINDOW = 31
"""Steps of one kind that are remembered. Their median counts, so that a stall does not."""
ENOUGH = 3
"""Steps without which a duration is not known."""
STALE_STEPS = 256
"""After so many steps a measurement should be repeated; after twice as many it is forgotten."""
CHANGED = 1.5
"""A duration that changes by this factor is another one."""
SHORTEST_S = 1e-9
FEW = 0.1
"""Weight of a duration that is not known well, among others that are."""


@dataclass
class Extra:
    """What draft tokens add to a step, in seconds."""

    fixed: float
    """Once per step with drafts."""
    each: float
    """Per draft token."""

    def of(self, drafts: int) -> float:
        """Of a step with so many draft tokens."""
        return self.fixed + self.each * drafts if drafts else 0.0


@dataclass
class _Times:
    """Recent values of one kind of step."""

    values: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """The step of each, and seconds."""
    middle: float = 0.0
    last: int = 0
    """The step in which the last was measured."""

    def add(self, seconds: float, step: int) -> None:
        self.values.append((step, seconds))
        while self.values[0][0] < step - 2 * STALE_STEPS:
            self.values.popleft()
        self.middle, self.last = median(value for _, value in self.values), step


@dataclass
class _OfRows:
    """Steps of about the same number of rows."""

    plain: _Times = field(default_factory=_Times)
    """Seconds of steps without drafts."""
    extra: dict[int, tuple[int, _Times]] = field(default_factory=dict)
    """Number of drafts, and seconds that they added, by `_kind` of that number."""


class StepCost:
    """Durations of recent decoding steps."""

    def __init__(self) -> None:
        self._by_rows: dict[int, _OfRows] = {}
        self._step = 0

    def add(self, rows: int, drafts: int, seconds: float) -> None:
        """Notes a step that only decodes.

        Args:
            rows: of the batch.
            drafts: draft tokens of all rows.
            seconds: its duration.
        """
        self._step, seconds = self._step + 1, max(seconds, SHORTEST_S)
        of_rows = self._by_rows.setdefault(_kind(rows), _OfRows())
        if not drafts:
            before = of_rows.plain.middle
            of_rows.plain.add(seconds, self._step)
            if not before / CHANGED < of_rows.plain.middle < before * CHANGED:
                # What drafts add has been measured against the wrong duration.
                of_rows.extra.clear()
            return
        plain = self.plain(rows)
        if plain is None:
            return
        _, times = of_rows.extra.setdefault(_kind(drafts), (drafts, _Times()))
        # A token costs no more than a row does, and drafts no more than another step beside that.
        times.add(min(seconds - plain, plain * (1 + 2 * drafts / rows)), self._step)
        if times.middle < -plain / 10:
            # Drafts do not make a step shorter: the step without is no longer what it was.
            of_rows.plain.last = -STALE_STEPS

    def plain(self, rows: int) -> float | None:
        """Seconds of a step without drafts; None: it must be measured first."""
        kind = _kind(rows)
        own = self._by_rows.get(kind)
        if own is not None and len(own.plain.values) >= ENOUGH:
            return own.plain.middle
        known = {k: v.plain for k, v in self._by_rows.items() if len(v.plain.values) >= ENOUGH}
        below = max((k for k in known if k < kind), default=None)
        above = min((k for k in known if k > kind), default=None)
        if below is None or above is None:
            return None
        share = (kind - below) / (above - below)
        return known[below].middle * (1 - share) + known[above].middle * share

    def extra(self, rows: int) -> Extra | None:
        """What drafts add to a step; None: nothing is known.

        Where nothing has been measured at this number of rows, the nearest number counts.
        """
        kind = _kind(rows)
        known = [k for k, v in self._by_rows.items() if v.extra]
        if not known:
            return None
        return self._fitted(self._by_rows[min(known, key=lambda k: abs(k - kind))])

    def plain_age(self, rows: int) -> int:
        """Steps since one without drafts was measured."""
        own = self._by_rows.get(_kind(rows))
        return STALE_STEPS if own is None else self._step - own.plain.last

    def extra_age(self, rows: int) -> int:
        """Steps since one with drafts was measured."""
        own = self._by_rows.get(_kind(rows))
        if own is None or not own.extra:
            return STALE_STEPS
        return self._step - max(times.last for _, times in own.extra.values())

    def measured(self, rows: int) -> list[int]:
        """How often each number of draft tokens has been measured recently."""
        own = self._by_rows.get(_kind(rows), _OfRows())
        return [len(times.values) for _, times in self._recent(own) if self._is_recent(times)]

    def _is_recent(self, times: _Times) -> bool:
        return self._step - times.last <= STALE_STEPS

    def _recent(self, of_rows: _OfRows) -> list[tuple[int, _Times]]:
        """What was measured recently; if nothing was, the last that was measured."""
        found = [*of_rows.extra.values()]
        recent = [(d, times) for d, times in found if self._is_recent(times)]
        return recent or [max(found, key=lambda pair: pair[1].last)] if found else []

    def _fitted(self, of_rows: _OfRows) -> Extra:
        """The line through what was measured; neither part of it is negative."""
        points = [
            (len(times.values) * (1 if len(times.values) >= ENOUGH else FEW), d, times.middle)
            for d, times in self._recent(of_rows)
        ]
        total = sum(w for w, _, _ in points)
        mean_d = sum(w * d for w, d, _ in points) / total
        mean = sum(w * y for w, _, y in points) / total
        variance = sum(w * (d - mean_d) ** 2 for w, d, _ in points)
        each = 0.0
        if variance > 0:
            each = sum(w * (d - mean_d) * (y - mean) for w, d, y in points) / variance
            if each <= 0:
                return Extra(max(0.0, mean), 0.0)
        fixed = mean - each * mean_d
        if variance > 0 and fixed >= 0:
            return Extra(fixed, each)
        squares = sum(w * d * d for w, d, _ in points)
        return Extra(0.0, max(0.0, sum(w * d * y for w, d, y in points) / squares))


def _kind(count: int) -> int:
    """Counts that are treated alike: each of its own up to 8, then in steps of 9 %."""
    return count if count < 8 else 8 + round(8 * math.log2(count / 8))
