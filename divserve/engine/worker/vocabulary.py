"""Token ids that a request must not sample because the engine that continues it lacks them."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from divserve.engine.order import GroupOrder
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve.engine.worker.staging import Staging

__all__ = ["VocabularyCap"]


class VocabularyCap:
    """The smaller vocabularies of groups.

    Args:
        vocab: token ids of the served model.
    """

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._caps = np.full(SLOTS, vocab)
        """``[capacity] int64`` by slot: first token id that must not be sampled."""
        self._capped: list[tuple[Tensor, int]] = []
        """Rows ``[N] int64`` of the layout, with the cap that they share."""

    def add(self, slot: int, order: GroupOrder) -> None:
        """Writes the state of a slot."""
        self._caps = grown(self._caps, slot)
        self._caps[slot] = self._vocab if order.vocab is None else min(order.vocab, self._vocab)

    def lay_out(self, groups: Groups, staging: Staging) -> None:
        """Notes the rows of all groups of the step."""
        self._capped = []
        caps, rows = self._caps[groups.slots], groups.rows[:, 0]
        if (caps < self._vocab).any():
            for cap in np.unique(caps[caps < self._vocab]).tolist():
                self._capped.append((staging.put(rows[caps == cap]), cap))

    def apply(self, guided: Tensor) -> None:
        """Masks the tokens, in place."""
        for rows, cap in self._capped:
            guided[:, cap:].index_fill_(0, rows, -math.inf)
