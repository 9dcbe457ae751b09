"""The slots of guided requests, and where their rows are in the batch of a step.

A group gets a slot when its primary is added and keeps it until it ends, even while preempted.
Every stage keeps its state of a group by slot, written once. From step to step only the requests'
rows in the batch change: `Slots.locate` finds them with one look-up per row and array operations.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from divserve.decoding.look import MAX_CANDIDATES
from divserve_kernels import ABSENT

__all__ = ["MEMBERS", "SLOTS", "Groups", "Located", "Slots", "grown"]

SLOTS = 64
"""Initial number of slots; everything kept by slot is doubled when they are used up."""
MEMBERS = 3
"""Most rows of a group: the primary, its contrast's guide and its temperature's guide."""
WIDTH = MEMBERS + MAX_CANDIDATES
"""Most requests of a slot: the group's members, then its probes by the index of the candidate."""


def grown(table: np.ndarray, slot: int) -> np.ndarray:
    """``table``, doubled along its first axis until it includes ``slot``; new entries are 0."""
    size = len(table)
    while slot >= size:
        size *= 2
    if size == len(table):
        return table
    found = np.zeros((size, *table.shape[1:]), table.dtype)
    found[: len(table)] = table
    return found


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups whose members all sample in a step."""

    slots: np.ndarray
    """``[G] int64``."""
    names: np.ndarray
    """``[G] object``: request ids of the primaries."""
    rows: np.ndarray
    """``[G, MEMBERS] int64``: rows of the primary and its guides; `ABSENT` where it has fewer."""

    def __len__(self) -> int:
        return len(self.slots)

    def select(self, which: np.ndarray) -> Groups:
        """The groups of a mask ``[G] bool`` or of indices ``[N] int64``."""
        return Groups(self.slots[which], self.names[which], self.rows[which])

    def positions(self, drafts: np.ndarray) -> Groups:
        """The groups, once for each position at which they sample, by rows of logits.

        A row with d draft tokens has d + 1 rows of logits, in the order of the batch.

        Args:
            drafts: ``[R] int64``: draft tokens of each row of the batch; all rows of a group have
                as many as its primary.
        """
        if not drafts.any():
            return self
        first = np.cumsum(drafts + 1) - drafts - 1
        counts = drafts[self.rows[:, 0]] + 1
        each = np.repeat(np.arange(len(self)), counts)
        position = np.arange(len(each)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self.rows[each]
        found = np.where(rows == ABSENT, ABSENT, first[rows] + position[:, None])
        return Groups(self.slots[each], self.names[each], found)

    @classmethod
    def joined(cls, first: Groups, second: Groups) -> Groups:
        """The groups of ``first``, then those of ``second``."""
        if not len(second):
            return first
        return cls(
            np.concatenate((first.slots, second.slots)),
            np.concatenate((first.names, second.names)),
            np.concatenate((first.rows, second.rows)),
        )


@dataclass(frozen=True, slots=True)
class Located:
    """The guided requests of a step."""

    drafts: np.ndarray
    """``[R] int64``: draft tokens of each row."""
    groups: Groups
    rows: np.ndarray
    """``[capacity] int64``: the row of each slot's primary; `ABSENT` where it does not sample."""
    probes: np.ndarray
    """``[P, 3] int64``: slot, index of the candidate and row of each probe that samples."""


@dataclass(slots=True)
class Slots:
    """The slot of each group."""

    _slots: dict[str, int] = field(default_factory=dict)
    """Slots by the primary's request id."""
    _places: dict[str, int] = field(default_factory=dict)
    """For every request of a slot, by its id: slot · `WIDTH` + column."""
    _requests: dict[int, set[str]] = field(default_factory=dict)
    """By slot, all request ids that were ever in `_places` for its group."""
    _names: np.ndarray = field(default_factory=lambda: np.full(SLOTS, None, object))
    """``[capacity] object``: primary ids by slot."""
    _sizes: np.ndarray = field(default_factory=lambda: np.zeros(SLOTS, np.int64))
    """``[capacity] int64``: number of members by slot; 0: the slot is free."""
    _free: list[int] = field(default_factory=list)
    """A heap: low slots are used first."""
    _probes: set[str] = field(default_factory=set)
    """Ids of probes that have not ended."""

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, primary: str) -> int | None:
        """The slot of a primary; None if it has none."""
        return self._slots.get(primary)

    def primary_of(self, request_id: str) -> str | None:
        """The primary of a guide; None for every other request."""
        place = self._places.get(request_id)
        if place is None or not 0 < place % WIDTH < MEMBERS:
            return None
        name: str = self._names[place // WIDTH]
        return name

    def take(self, primary: str, guides: Sequence[str]) -> int:
        """Gives a group a slot; a group that resumes after a preemption keeps its own.

        Raises:
            ValueError: it has too many guides.
        """
        if len(guides) >= MEMBERS:
            raise ValueError(f"{len(guides)} guides, not at most {MEMBERS - 1}")
        slot = self._slots.get(primary)
        if slot is None:
            # Without free slots, those in use are exactly the first ones.
            slot = heapq.heappop(self._free) if self._free else len(self._slots)
            self._names, self._sizes = grown(self._names, slot), grown(self._sizes, slot)
            self._slots[primary], self._names[slot] = slot, primary
            self._sizes[slot] = 1 + len(guides)
            for column, name in enumerate((primary, *guides)):
                self._place(name, slot, column)
        return slot

    def add_probe(self, name: str, primary: str, index: int) -> int:
        """Adds a probe of a candidate to its primary's slot; returns the slot.

        Raises:
            KeyError: the primary has no slot.
        """
        slot = self._slots[primary]
        self._place(name, slot, MEMBERS + index)
        self._probes.add(name)
        return slot

    def release(self, request_id: str) -> int | None:
        """A request has ended; returns the slot that this frees, or None if it was no primary."""
        if request_id in self._probes:
            self._probes.discard(request_id)
            self._places.pop(request_id, None)
        slot = self._slots.pop(request_id, None)
        if slot is not None:
            # Also drops remaining probes: the slot's next group must not get their rows.
            for name in self._requests.pop(slot):
                self._places.pop(name, None)
            self._names[slot], self._sizes[slot] = None, 0
            heapq.heappush(self._free, slot)
        return slot

    def locate(self, req_ids: Sequence[str], samples: np.ndarray, drafts: np.ndarray) -> Located:
        """Finds the guided requests in the batch.

        Args:
            req_ids: request id of each row.
            samples: ``[R] bool``: which rows take a token in this step. A group with a row that
                does not is left out.
            drafts: ``[R] int64``: draft tokens of each row. A group whose rows do not have equally
                many is left out.
        """
        count, capacity = len(req_ids), len(self._sizes)
        unknown = capacity * WIDTH
        places = np.fromiter(map(self._places.get, req_ids, repeat(unknown)), np.int64, count)
        rows = np.full(unknown + 1, ABSENT)
        rows[places] = np.where(samples, np.arange(count), ABSENT)
        table = rows[:unknown].reshape(capacity, WIDTH)
        members = table[:, :MEMBERS]
        complete = (members != ABSENT).sum(1) == self._sizes
        if drafts.any():
            own = drafts[members]
            complete &= ((own == own[:, :1]) | (members == ABSENT)).all(1)
        slots = np.flatnonzero(complete & (self._sizes > 0))
        probes = np.empty((0, 3), np.int64)
        if self._probes:
            of, index = np.nonzero(table[:, MEMBERS:] != ABSENT)
            probes = np.stack((of, index, table[of, MEMBERS + index]), axis=1)
        groups = Groups(slots, self._names[slots], members[slots])
        return Located(drafts, groups, members[:, 0], probes)

    def _place(self, name: str, slot: int, column: int) -> None:
        self._places[name] = slot * WIDTH + column
        self._requests.setdefault(slot, set()).add(name)
