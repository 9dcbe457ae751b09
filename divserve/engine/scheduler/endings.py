"""The end of groups: when one member ends, all of them end, and the front end is told once.

A member may end by itself (a stop token, a length limit), through the front end (an abort, a drain)
or because of a fault. The rest of its group ends in the same update, or in the next one if the
front end can only be told there. A grounding text that has been read just leaves its group.
"""

from __future__ import annotations

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from divserve.engine.faults import LOST
from divserve.engine.reported import Report
from divserve.engine.scheduler.figures import Figures
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host

__all__ = ["Endings"]

READ = RequestStatus.FINISHED_LENGTH_CAPPED
"""How our rows end by themselves: a guide at its length limit, a grounding text once read."""


class Endings:
    """Ends the groups of members that have ended.

    Args:
        host: the scheduler.
        groups: all groups.
        figures: is told about groups that break.
    """

    def __init__(self, host: Host, groups: Groups, figures: Figures) -> None:
        self._host, self._groups, self._figures = host, groups, figures
        self.failed: dict[str, str] = {}
        """Why a request is about to end with an error, by request id."""
        self._ended: dict[str, Group] = {}
        """Groups that lost a member and have yet to be settled, by name."""
        self._read: list[str] = []
        """Requests that have read their grounding text."""

    def note(self, request: Request, group: Group) -> None:
        """A member has ended."""
        if group.reads(request.request_id) and request.status == READ:
            self._read.append(request.request_id)
        else:
            self._ended[group.name] = group
            self._groups.break_up(group)

    def settle(self, outputs: dict[int, EngineCoreOutputs] | None) -> None:
        """Ends the rest of every group that has lost a member.

        Args:
            outputs: an update's outputs to the front end, by client; None outside an update.
        """
        while self._read:
            self._groups.remove_grounding(self._read.pop())
        while self._ended:
            _, group = self._ended.popitem()
            capped = all(m.status == READ for m in group.members[1:] if m.is_finished())
            self._host.end_rows(
                [m.request_id for m in group.members[1:] if not m.is_finished()],
                RequestStatus.FINISHED_ABORTED,
            )
            if not group.primary.is_finished():
                if outputs is None:
                    # Only an update reaches the front end, so the group stays until the next one.
                    self.failed[group.name] = LOST
                    self._figures.member_ended(group)
                    self._ended.pop(group.name, None)
                    continue
                self._end_primary(group.primary, capped, outputs)
            self._groups.remove(group)
            self._figures.forget(group)
            # Ending its members called `note` again.
            self._ended.pop(group.name, None)

    def _end_primary(
        self, primary: Request, capped: bool, outputs: dict[int, EngineCoreOutputs]
    ) -> None:
        """A guide ended first: at its length limit the answer is complete, else it fails."""
        status = RequestStatus.FINISHED_LENGTH_CAPPED if capped else RequestStatus.FINISHED_ERROR
        self._host.end_rows([primary.request_id], status)
        output = EngineCoreOutput(
            request_id=primary.request_id,
            new_token_ids=[],
            finish_reason=primary.get_finished_reason(),
            events=primary.take_events(),
            trace_headers=primary.trace_headers,
        )
        if not capped:
            Report(error=LOST, broken="member_ended").put_on(output)
        outputs.setdefault(primary.client_index, EngineCoreOutputs()).outputs.append(output)
