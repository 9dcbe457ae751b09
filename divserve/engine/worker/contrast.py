"""Contrast with a guide row of the batch, or with the vector of a grounding text."""

from __future__ import annotations

from torch import Tensor

from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.slots import Groups
from divserve.engine.worker.staging import Staging
from divserve_kernels import Streams, guide

__all__ = ["Contrast"]


class Contrast:
    """The first program of groups without amateurs."""

    def __init__(self, programs: GroupPrograms, groundings: Groundings) -> None:
        self._programs, self._groundings = programs, groundings
        self._streams: Streams | None = None

    def lay_out(self, groups: Groups, staging: Staging) -> None:
        """Notes the rows of groups without amateurs."""
        self._streams = None
        if len(groups):
            primary, guides = groups.rows[:, 0], groups.rows[:, 1]
            third = self._groundings.streams(groups)
            self._streams = self._programs.streams(
                2 * groups.slots, primary, guides, third, staging
            )

    def apply(self, logits: Tensor, guided: Tensor) -> list[Tensor]:
        """Writes the primaries' rows of ``guided`` ``[R, V] float32``.

        Returns:
            Their statistics ``[G, len(STATISTICS)] float32``; an empty list if there are none.
        """
        if self._streams is None:
            return []
        return [guide(logits, self._streams, side=self._groundings.table, out=guided)]
