"""All groups and the state of each.

::

    waiting ──(a member is admitted)──▶ entering ──(all run, one token left each)──▶ ready
       ▲                                                                              │
       └───────────────────────────(preempted)────────────────────────────────────────┘

Members of a ready group take their sampling token in every step; all other members are *held*: they
stop one token short of it. Only groups that change state are looked at, so waiting groups and plain
requests cost nothing in a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vllm.v1.request import Request, RequestStatus

from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.host import Unit

__all__ = ["Groups"]


class Groups:
    """All groups of a scheduler, and the state of each."""

    def __init__(self) -> None:
        self._by_member: dict[str, Group] = {}
        self.entering: dict[str, Group] = {}
        """Groups of which some members run or are loaded, but which are not ready, by name."""
        self.ready: dict[str, Group] = {}
        """Groups that sample in every step, by name."""
        self.singles: dict[str, Group] = {}
        """Running groups of one row (with amateurs, look-back …), by name."""
        self.held: set[str] = set()
        """Request ids of members that stop one token short."""
        self._front: list[Request] = []
        self._front_known = True

    def __len__(self) -> int:
        return len(self._by_member)

    def __iter__(self) -> Iterator[Group]:
        """Every group, once."""
        return (group for name, group in self._by_member.items() if group.name == name)

    def running(self) -> list[Group]:
        """Groups of which at least one row runs."""
        return [*self.ready.values(), *self.entering.values(), *self.singles.values()]

    def get(self, request_id: str) -> Group | None:
        """The group of a member; None for other requests."""
        return self._by_member.get(request_id)

    def units(self, requests: Iterable[Request]) -> list[Unit]:
        """What these requests are preempted with: themselves, or all members of their groups."""
        units: dict[int, Unit] = {}
        for request in requests:
            group = self.get(request.request_id)
            units.setdefault(id(group or request), (request,) if group is None else group.members)
        return [*units.values()]

    def add(self, group: Group) -> None:
        """Adds a group; all of its members wait."""
        for member in group.members:
            self._by_member[member.request_id] = group
        self._hold(group)

    def enter(self, group: Group) -> None:
        """The first member of a group is about to be admitted."""
        self.entering[group.name] = group

    def admitted(self, request_ids: Iterable[str]) -> list[Group]:
        """Notes the members admitted in a step; returns the groups that now run as a whole.

        Args:
            request_ids: of all admitted requests, including plain ones.
        """
        whole = {}
        for request_id in request_ids:
            group = self._by_member.get(request_id)
            if group is None:
                continue
            if len(group.members) == 1:
                self.singles[group.name] = group
            elif group.name not in self.ready:
                self.entering[group.name] = group
            if group.running() == len(group.members):
                whole[group.name] = group
        # These were about to enter when memory ran out.
        for group in [g for g in self.entering.values() if not g.placed()]:
            del self.entering[group.name]
        return list(whole.values())

    def find_ready(self) -> None:
        """Releases the entering groups that are now ready."""
        for group in [group for group in self.entering.values() if group.ready()]:
            self.release(group)

    def release(self, group: Group) -> None:
        """A group samples from this step on, in which its members may still be admitted."""
        self.entering.pop(group.name, None)
        self.ready[group.name] = group
        self.held.difference_update(m.request_id for m in group.members)
        self._front_known = False

    def withdraw(self, group: Group) -> None:
        """A group does not sample in this step after all, or no longer samples."""
        self.break_up(group)
        if group.placed() and len(group.members) > 1:
            self.entering[group.name] = group

    def break_up(self, group: Group) -> None:
        """A group stops sampling: it waits again or ends."""
        if self.ready.pop(group.name, None) is not None:
            self._front_known = False
        self.entering.pop(group.name, None)
        self.singles.pop(group.name, None)
        self._hold(group)

    def remove(self, group: Group) -> None:
        """A group has ended."""
        self.break_up(group)
        for member in group.members:
            self._by_member.pop(member.request_id, None)
            self.held.discard(member.request_id)

    def remove_grounding(self, request_id: str) -> None:
        """A grounding text has been read; a primary without guides then waits for no other row."""
        group = self._by_member.pop(request_id)
        group.drop_grounding()
        if not group.guides:
            self.held.discard(group.name)
            if self.entering.pop(group.name, None) is not None and group.running():
                self.singles[group.name] = group

    def front(self) -> list[Request]:
        """The running members of ready groups, side by side."""
        if not self._front_known:
            self._front = [
                m
                for group in self.ready.values()
                for m in group.members
                if m.status == RequestStatus.RUNNING
            ]
            # Joining members are admitted behind all others; from the next step on they run too.
            self._front_known = len(self._front) == sum(len(g.members) for g in self.ready.values())
        return self._front

    def _hold(self, group: Group) -> None:
        self.held.update(m.request_id for m in group.members if group.waits_for_others(m))
