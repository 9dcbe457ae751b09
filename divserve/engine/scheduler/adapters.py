"""LoRA adapters: a step may use ``--max-loras`` of them.

vLLM counts the adapters of the requests that it schedules in the step. Members that are held are
not among them, and those that still wait are not either, but they need their adapters before the
group can sample. So here the adapters of all running requests and of all members of the groups that
run are in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm.v1.request import Request

from divserve.engine.scheduler.groups import Groups
from divserve.engine.scheduler.host import Host

__all__ = ["Adapters", "adapters_of"]


def adapters_of(requests: Iterable[Request]) -> set[int]:
    """Ids of the adapters of these requests."""
    return {r.lora_request.lora_int_id for r in requests if r.lora_request is not None}


class Adapters:
    """Which waiting requests may be admitted beside the adapters in use.

    Args:
        host: the scheduler.
        groups: all groups.
    """

    def __init__(self, host: Host, groups: Groups) -> None:
        self._host, self._groups = host, groups
        self._used: set[int] | None = None
        self._first: set[int] | None = None
        """The adapters of a group that waits for more than one. Requests behind it get no others,
        so that those in use run out; else one might always be free too few."""

    @property
    def most(self) -> int:
        """How many adapters a step may use; 0: there are none."""
        config = self._host.lora_config
        return int(config.max_loras) if config else 0

    def begin(self) -> None:
        """A step begins."""
        self._used = self._first = None

    def used(self) -> set[int]:
        """Ids of the adapters of running requests and groups."""
        groups = (*self._groups.entering.values(), *self._groups.ready.values())
        members = (member for group in groups for member in group.members)
        return adapters_of((*self._host.running, *members))

    def admits(self, members: Sequence[Request]) -> bool:
        """Whether there are adapters for a plain request, or for all members of a group.

        Without groups, vLLM's own count is right.
        """
        if not (self.most and len(self._groups)):
            return True
        if not (wanted := adapters_of(members)):
            return True
        if self._first is not None and not wanted <= self._first:
            return False
        if self._used is None:
            self._used = self.used()
        if len(self._used | wanted) > self.most:
            if len(wanted) > 1:
                self._first = wanted
            return False
        self._used |= wanted
        return True
