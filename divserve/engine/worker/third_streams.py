"""Detects NaN in a third stream: no statistic covers one, so the guided logits are checked."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from divserve.engine.order import GroupOrder
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve.engine.worker.staging import Staging

__all__ = ["ThirdStreamCheck"]


class ThirdStreamCheck:
    """Groups with a third stream: a grounding text's vector or a second amateur's logits."""

    def __init__(self) -> None:
        self._present = np.zeros(SLOTS, np.bool_)
        """``[capacity] bool`` by slot: whether the group has a third stream."""
        self._places_rows: Tensor | None = None
        """``[2, N] int64``: indices of such groups in the layout, and their rows."""

    def add(self, slot: int, order: GroupOrder) -> None:
        """Writes the state of a slot."""
        self._present = grown(self._present, slot)
        self._present[slot] = order.grounded or order.amateurs > 1

    def lay_out(self, groups: Groups, staging: Staging) -> None:
        """Notes the rows of all groups of the step."""
        self._places_rows = None
        places = np.flatnonzero(self._present[groups.slots])
        if len(places):
            self._places_rows = staging.put(np.stack((places, groups.rows[places, 0])))

    def apply(self, guided: Tensor, statistics: Tensor) -> None:
        """Sets a statistic to NaN where the guided logits contain NaN, in place.

        Args:
            guided: ``[R, V] float32``.
            statistics: ``[≥ G, len(STATISTICS)] float32``.
        """
        if self._places_rows is not None:
            places, rows = self._places_rows
            zeros = guided.index_select(0, rows).amax(-1) * 0
            statistics[:, 0].index_add_(0, places, zeros)
