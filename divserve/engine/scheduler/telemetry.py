"""What the scheduler alone can see of guided requests, for the metrics of the front end.

The scheduler runs in the engine's process, whose metrics nobody scrapes. So figures travel with the
report of a token (`divserve.engine.client.ledger` counts them), each of them once.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.request import Request, RequestStatus

from divserve.engine.faults import LOST
from divserve.engine.order import Report
from divserve.engine.scheduler.admission import AdmissionMixin
from divserve.engine.scheduler.group import Group

__all__ = ["TelemetryMixin"]


class TelemetryMixin(AdmissionMixin):
    """Waiting times, tokens taken back, and the time of the guidance operation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unadmitted: dict[int, Group] = {}
        """Groups of several rows that have not been running as a whole yet, by identity."""
        self._broken: dict[str, tuple[str, int]] = {}
        """By primary id: why a group is about to fail, and its tokens that were taken back."""
        self._seconds: float | None = None
        """Time of this step's guidance operation, until one report carries it."""

    def add_request(self, request: Request) -> None:
        """Adds the request; from now on its group waits for its admission."""
        super().add_request(request)
        group = self._groups.get(request.request_id)
        if group is not None and group.primary is request and len(group.members) > 1:
            self._unadmitted[id(group)] = group

    def _note_admissions(self) -> None:
        """After a step has been made: which groups are running for the first time."""
        if not self._unadmitted:
            return
        now = time.monotonic()
        for key, group in list(self._unadmitted.items()):
            if all(m.status == RequestStatus.RUNNING for m in group.members):
                group.waited = now - group.arrived
                del self._unadmitted[key]

    def _note_unguided(self, group: Group, row_id: str, tokens: int, why: str) -> None:
        """Notes that a row's tokens are taken back; only the primary's would be sent."""
        primary = group.primary.request_id
        if why != LOST:
            # Guided they were, if by numbers that are none.
            self._broken[primary] = ("not_numbers", 0)
            return
        _, before = self._broken.get(primary, ("", 0))
        self._broken[primary] = ("no_report", before + tokens * (row_id == primary))

    def _forget(self, group: Group) -> None:
        """The group has ended."""
        self._unadmitted.pop(id(group), None)
        self._broken.pop(group.primary.request_id, None)

    def _add_figures(self, report: Report, group: Group | None, request_id: str) -> None:
        """Adds what goes with the report of an output, if its group is known or was."""
        if group is not None and group.waited is not None:
            report.wait_s, group.waited = group.waited, None
        if group is not None and self._seconds is not None:
            report.kernel_s, self._seconds = self._seconds, None
        if (broken := self._broken.pop(request_id, None)) is not None:
            report.broken, report.unguided = broken
