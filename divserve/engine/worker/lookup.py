"""Drafts of guided requests: looked up in the document first, then in the prompt and the answer.

The document is the part of the prompt that the guide lacks. Guided answers follow it, so that what
it says after the last tokens is more often right than what the rest of the prompt or the answer
says. Takes the place of vLLM's n-gram look-up on model runner V1, for guided requests; guides and
probes take no drafts of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divserve.engine.order import GroupOrder
from divserve.engine.worker.slots import SLOTS, Groups, Located, grown
from divserve_kernels import ABSENT

__all__ = ["Lookup"]


class Lookup:
    """Where the texts of groups begin and end, by slot, and the rows of a layout."""

    def __init__(self) -> None:
        self._texts = np.zeros((SLOTS, 3), np.int64)
        """By slot: where the document begins and ends, and where the prompt ends."""
        self._rows = np.empty(0, np.int64)
        """``[G]``: rows of the primaries."""
        self._slots = np.empty(0, np.int64)
        """``[G]``: their slots."""
        self._others: list[int] = []
        """Rows of guides and probes."""

    def add(self, slot: int, order: GroupOrder, prompt: int) -> None:
        """Notes the texts of a group.

        Args:
            slot: of the group.
            order: on the group.
            prompt: tokens of its primary's prompt.
        """
        self._texts = grown(self._texts, slot)
        self._texts[slot] = (*order.document, prompt)

    def lay_out(self, groups: Groups, located: Located) -> None:
        """Notes the rows of a layout."""
        self._rows, self._slots = groups.rows[:, 0], groups.slots
        guides = groups.rows[:, 1:]
        self._others = [*guides[guides != ABSENT].tolist(), *located.probes[:, 2].tolist()]

    def withheld(self, sampled: Sequence[list[int]], primaries: bool) -> list[list[int]]:
        """The tokens of a step as vLLM's drafter is to see them: it drafts for rows that have some.

        Args:
            sampled: the tokens that each row has taken.
            primaries: whether to withhold those of primaries too.
        """
        found = list(sampled)
        for row in (*self._others, *(self._rows.tolist() if primaries else ())):
            found[row] = []
        return found

    def propose(
        self,
        sampled: Sequence[list[int]],
        token_ids: np.ndarray,
        lengths: np.ndarray,
        lookup: tuple[int, int],
        most: int,
    ) -> dict[int, list[int]]:
        """Drafts by row, for the primaries that have taken a token.

        Args:
            sampled: the tokens that each row has taken.
            token_ids: ``[R, max_model_len] int32``: tokens of each row, those included.
            lengths: ``[R] int32``: how many are known.
            lookup: fewest and most tokens of a match.
            most: most drafts of a row.
        """
        # numba takes a second to import, and servers without drafts do not need it.
        from divserve.engine.worker.lookup_search import search

        rows = self._rows
        room = token_ids.shape[1]
        open_ = np.fromiter((bool(sampled[row]) for row in rows.tolist()), np.bool_, len(rows))
        open_ &= lengths[rows] < room
        rows, texts = rows[open_], self._texts[self._slots[open_]]
        drafts = np.zeros((len(rows), most), np.int32)
        counts = np.zeros(len(rows), np.int64)
        search(token_ids, lengths, rows, texts, *lookup, drafts, counts)
        found = zip(rows.tolist(), drafts.tolist(), counts.tolist(), strict=True)
        return {row: ids[:count] for row, ids, count in found}
