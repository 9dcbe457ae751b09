"""Contrast with the logits of amateurs: the first is the second stream, the second the third."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from divserve.engine.models.loader import amateur_logits
from divserve.engine.order import GroupOrder
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT, Streams, guide, side_row

__all__ = ["AmateurContrast"]


class AmateurContrast:
    """The first program of groups with amateurs."""

    def __init__(self, programs: GroupPrograms) -> None:
        self._programs = programs
        self._counts = np.zeros(SLOTS, np.int64)
        """``[capacity] int64``: number of amateurs by slot."""
        self._streams: Streams | None = None

    def add(self, slot: int, order: GroupOrder) -> None:
        """Writes the state of a slot."""
        self._counts = grown(self._counts, slot)
        self._counts[slot] = order.amateurs

    def among(self, groups: Groups) -> np.ndarray:
        """``[G] bool``: which groups have amateurs."""
        among: np.ndarray = self._counts[groups.slots] > 0
        return among

    def lay_out(self, groups: Groups, staging: Staging) -> None:
        """Notes the rows of groups with amateurs."""
        self._streams = None
        if count := len(groups):
            # The side tensor holds all rows of the first amateur, then all of the second.
            first = side_row(0) - np.arange(count)
            second = first - count
            third = np.where(self._counts[groups.slots] > 1, second, ABSENT)
            columns, primary = 2 * groups.slots, groups.rows[:, 0]
            self._streams = self._programs.streams(columns, primary, first, third, staging)

    def read(self, model: nn.Module, hidden_states: Tensor) -> Tensor | None:
        """The amateurs' logits ``[2 · G, V]`` of its own rows; None if it has none.

        Args:
            model: the served model, with its amateurs.
            hidden_states: ``[R, sum of the hidden sizes]`` of the rows.
        """
        if self._streams is None:
            return None
        return amateur_logits(model, hidden_states, self._streams.primary)

    def apply(self, logits: Tensor, guided: Tensor, read: Tensor | None) -> list[Tensor]:
        """As `Contrast.apply`.

        Args:
            logits: ``[R, V]``: raw logits.
            guided: ``[R, V] float32``: its primaries' rows are overwritten.
            read: what `read` has returned.
        """
        if self._streams is None:
            return []
        return [guide(logits, self._streams, side=read, out=guided)]
