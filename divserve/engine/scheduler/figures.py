"""Figures of guided requests that only the scheduler can measure, for the front end's metrics.

The scheduler runs in the engine's process, whose metrics nobody scrapes. So each figure travels
once, with the report of a token, and `divserve.engine.client.ledger` counts it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from divserve.engine.faults import LOST
from divserve.engine.reported import Report
from divserve.engine.scheduler.group import Group

__all__ = ["Figures"]


class Figures:
    """Waiting times, tokens taken back, and the time of the guidance operation."""

    def __init__(self) -> None:
        self._unadmitted: set[str] = set()
        """Names of groups of several rows that have not yet run as a whole."""
        self._broken: dict[str, tuple[str, int]] = {}
        """By group: why it is about to fail, and how many of its tokens were taken back."""
        self.kernel_s: float | None = None
        """Seconds of this step's guidance operation, until a report carries it."""

    def __len__(self) -> int:
        return len(self._unadmitted) + len(self._broken)

    def add(self, group: Group) -> None:
        """A group waits to be admitted."""
        if group.several:
            self._unadmitted.add(group.name)

    def admitted(self, groups: Iterable[Group]) -> None:
        """These groups now run as a whole."""
        for group in groups:
            if group.name in self._unadmitted:
                self._unadmitted.discard(group.name)
                group.waited = time.monotonic() - group.arrived

    def taken_back(self, group: Group, request_id: str, tokens: int, why: str) -> None:
        """Tokens of a row were taken back; only the primary's count, as no others are sent."""
        if why != LOST:
            # These tokens were guided, but their statistics are NaN.
            self._broken[group.name] = ("not_numbers", 0)
            return
        _, before = self._broken.get(group.name, ("", 0))
        self._broken[group.name] = ("no_report", before + tokens * (request_id == group.name))

    def member_ended(self, group: Group) -> None:
        """A member has ended without the others."""
        self._broken.setdefault(group.name, ("member_ended", 0))

    def forget(self, group: Group) -> None:
        """The group has ended."""
        self._unadmitted.discard(group.name)
        self._broken.pop(group.name, None)

    def add_to(self, report: Report, group: Group | None, request_id: str) -> None:
        """Adds the figures to the report of an output of a group, which may have ended."""
        if group is not None:
            if group.waited is not None:
                report.wait_s, group.waited = group.waited, None
            if self.kernel_s is not None:
                report.kernel_s, self.kernel_s = self.kernel_s, None
        if self._broken and (broken := self._broken.pop(request_id, None)) is not None:
            report.broken, report.unguided = broken
