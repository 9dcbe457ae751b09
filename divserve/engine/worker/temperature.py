"""Second programs, for a temperature method that has its own guide."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from divserve.decoding import STATISTICS
from divserve.engine.order import GroupOrder
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT, Streams, guide

__all__ = ["OwnTemperature"]

FACTOR = STATISTICS.index("factor")


class OwnTemperature:
    """The second program of groups that have one; it only measures (`Form.OBSERVE`)."""

    def __init__(self, programs: GroupPrograms) -> None:
        self._programs = programs
        self._guides = np.zeros(SLOTS, np.int64)
        """``[capacity] int64`` by slot: column of its guide in `Groups.rows`; 0: no program."""
        self._streams: Streams | None = None
        self.places: tuple[int, ...] = ()
        """Indices of the layout's groups that have one."""

    def add(self, slot: int, order: GroupOrder) -> None:
        """Writes the state of a slot.

        Raises:
            ValueError: its temperature has no guide.
        """
        self._guides = grown(self._guides, slot)
        self._guides[slot] = 0
        if order.temperature_program is not None:
            if not order.guides:
                raise ValueError("a temperature program without a guide")
            self._guides[slot] = len(order.guides)

    def lay_out(self, groups: Groups, staging: Staging) -> None:
        """Notes the rows of all groups of the step."""
        self._streams, self.places = None, ()
        places = np.flatnonzero(self._guides[groups.slots])
        if len(places):
            slots, rows = groups.slots[places], groups.rows[places]
            guides = rows[np.arange(len(rows)), self._guides[slots]]
            none = np.full(len(places), ABSENT)
            self.places = tuple(places.tolist())
            self._streams = self._programs.streams(2 * slots + 1, rows[:, 0], guides, none, staging)

    def measure(self, logits: Tensor, guided: Tensor) -> list[Tensor]:
        """Statistics ``[N, len(STATISTICS)] float32`` of `places`, if any, of the raw logits."""
        if self._streams is None:
            return []
        return [guide(logits, self._streams, out=guided)]

    def apply(self, guided: Tensor, measured: list[Tensor]) -> None:
        """Divides the primaries' guided logits by the factors that `measure` has found."""
        if self._streams is not None:
            rows, (statistics,) = self._streams.primary, measured
            factors = statistics[:, FACTOR, None]
            guided.index_copy_(0, rows, guided.index_select(0, rows) / factors)
