"""The end of groups: when a member goes, all of them go, and the front end hears of one.

A member may end by itself (a stop token, a length limit, a grounding text that has been read), by
the front end (an abort, a drain) or by a fault. What is left of its group is ended in the same
update, or in the next one where only that can tell the front end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from divserve.engine.faults import LOST
from divserve.engine.order import Report
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.look_back import LookBackMixin
from divserve.engine.scheduler.preflight import PreflightMixin
from divserve.engine.scheduler.switching import SwitchMixin
from divserve.engine.scheduler.telemetry import TelemetryMixin

__all__ = ["EndingMixin"]

_READ = RequestStatus.FINISHED_LENGTH_CAPPED
"""How rows of ours end by themselves: a guide at the longest length, a grounding text when read."""

MEMBER_ENDED = ("member_ended", 0)
ENDED = Report(error=LOST, broken=MEMBER_ENDED[0])
"""The report of a request whose guide has ended without it."""


class EndingMixin(LookBackMixin, SwitchMixin, TelemetryMixin, PreflightMixin):
    """What becomes of a group of which a member has ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ended: dict[int, Group] = {}
        """Groups that lost a member and are to be settled, by identity."""
        self._grounded: list[str] = []
        """Requests that have read their grounding text in this update."""
        self._updating = False

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        group = self._groups.get(request.request_id)
        if group is not None and group.reads(request.request_id) and request.status == _READ:
            group.drop_grounding()
            self._grounded.append(request.request_id)
        elif group is not None:
            self._ended[id(group)] = group
        freed = super()._free_request(request, *args, **kwargs)
        if (
            group is not None
            and request is not group.primary
            and self.finished_req_ids_dict is not None
        ):
            # The front end has never heard of it.
            self.finished_req_ids_dict[request.client_index].discard(request.request_id)
        return freed

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Ends requests from outside; a group ends as a whole and only its primary is reported."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        wanted = list(self.requests if request_ids is None else request_ids)
        finished: list[Request] = super().finish_requests(wanted, finished_status)
        ours = {id(m) for g in self._ended.values() for m in g.members if m is not g.primary}
        ours |= {id(p) for alarm in self._probes.values() for p in alarm.probes}
        if not self._updating:
            for request_id in wanted:
                self._failed.pop(request_id, None)
            self._settle(None)
        return [r for r in finished if id(r) not in ours]

    def _settle(self, outputs: dict[int, EngineCoreOutputs] | None) -> None:
        """Ends what is left of every group that lost a member."""
        self._end_orphans()
        while self._grounded:
            self._groups.pop(self._grounded.pop(), None)
        while self._ended:
            _, group = self._ended.popitem()
            capped = all(m.status == _READ for m in group.members[1:] if m.is_finished())
            for member in group.members[1:]:
                if not member.is_finished():
                    super().finish_requests(member.request_id, RequestStatus.FINISHED_ABORTED)
            if not group.primary.is_finished():
                if outputs is None:
                    # Only an update can tell the front end, so the group stays until the next one.
                    self._failed[group.primary.request_id] = LOST
                    self._broken.setdefault(group.primary.request_id, MEMBER_ENDED)
                    continue
                self._end_primary(group.primary, capped, outputs)
            for member in group.members:
                self._groups.pop(member.request_id, None)
                self._released.discard(member.request_id)
            self._one_token.pop(group.primary.request_id, None)
            self._forget(group)
            self._ended.pop(id(group), None)
            if self._partial is group:
                self._partial = None

    def _end_primary(
        self, primary: Request, capped: bool, outputs: dict[int, EngineCoreOutputs]
    ) -> None:
        """A guide ended first: at its length limit the answer is complete, else it has failed."""
        status = RequestStatus.FINISHED_LENGTH_CAPPED if capped else RequestStatus.FINISHED_ERROR
        super().finish_requests(primary.request_id, status)
        output = EngineCoreOutput(
            request_id=primary.request_id,
            new_token_ids=[],
            finish_reason=primary.get_finished_reason(),
            events=primary.take_events(),
            trace_headers=primary.trace_headers,
        )
        if not capped:
            ENDED.put_on(output)
        step = outputs.setdefault(primary.client_index, EngineCoreOutputs())
        step.outputs.append(output)
