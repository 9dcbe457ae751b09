"""Grounding texts: their distributions, reduced to one vector per request.

While a text is prefilled, the logits of all its positions are computed in slices and reduced
immediately, to max_j ln q_j(v) or mean_j ln q_j(v): V numbers are kept, however long the text is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from divserve.engine.faults import log_fault
from divserve.engine.order import GroupOrder, TextOrder
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve_kernels import ABSENT, side_row

__all__ = ["Groundings"]

SLICE = 64
"""Number of positions whose logits are in memory at a time."""
VECTORS = 8
"""Initial number of vectors; the table doubles when it is full."""


@dataclass(slots=True)
class Text:
    """A text that is being read."""

    primary: str
    tokens: int
    average: bool
    started: bool = False


class Groundings:
    """Vectors by the primary's id, and texts being read by their own request's id."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._device = device
        self._vocab = vocab
        self.table: Tensor | None = None
        """``[capacity, V] float32``: one vector per grounded request; None before the first."""
        self._vectors: dict[str, int] = {}
        """Index in `table`, by primary."""
        self._free: list[int] = []
        self._texts: dict[str, Text] = {}
        self._grounded = np.zeros(SLOTS, np.bool_)
        """``[capacity] bool`` by slot: which groups have a grounding text."""

    def add(self, slot: int, order: GroupOrder) -> None:
        """Writes the state of a group's slot."""
        self._grounded = grown(self._grounded, slot)
        self._grounded[slot] = order.grounded

    def add_text(self, request_id: str, order: TextOrder) -> None:
        """Adds a text, or restarts it after a preemption."""
        primary = order.primary
        self._texts[request_id] = Text(primary, order.tokens, order.average)
        if primary not in self._vectors:
            self._vectors[primary] = self._free.pop() if self._free else len(self._vectors)

    def restart(self, request_ids: set[str]) -> None:
        """Preempted texts are read again from their first token."""
        for request_id in request_ids & self._texts.keys():
            self._texts[request_id].started = False

    def end(self, request_id: str) -> None:
        """A request has ended: a text, a primary or an unrelated one."""
        self._texts.pop(request_id, None)
        if (vector := self._vectors.pop(request_id, None)) is not None:
            self._free.append(vector)

    def legible(self, groups: Groups) -> Groups:
        """The groups without those whose grounding text could not be read."""
        grounded = self._grounded[groups.slots]
        if not grounded.any():
            return groups
        known = np.array([name in self._vectors for name in groups.names], np.bool_)
        return groups.select(known | ~grounded)

    def streams(self, groups: Groups) -> np.ndarray:
        """``[G] int64``: each group's vector as a stream of the kernel, or `ABSENT`."""
        streams = np.full(len(groups), ABSENT)
        for place in np.flatnonzero(self._grounded[groups.slots]):
            streams[place] = side_row(self._vectors[groups.names[place]])
        return streams

    def read(self, req_ids: list[str], starts: np.ndarray, forward: Forward, ranks: Ranks) -> None:
        """Reduces the part of each text that was read in this step.

        If a text fails, the vector of its request is dropped, and the request is no longer guided.
        Its logits are still computed, because other ranks do the same.

        Args:
            req_ids: request id of each row.
            starts: ``[R + 1] int32``: where each row's tokens begin.
            forward: the forward pass, with the states of all tokens of the step.
            ranks: compute the logits together.
        """
        if not self._texts:
            return
        for row, request_id in enumerate(req_ids):
            if (text := self._texts.get(request_id)) is None:
                continue
            states = forward.hidden_states[int(starts[row]) : int(starts[row + 1])]
            for part in states.split(SLICE):
                try:
                    with ranks.together():
                        logits = forward.head(part)
                    self._reduce(text, logits)
                except Exception as error:
                    log_fault(f"Reading {request_id}", error)
                    self.end(text.primary)

    def _reduce(self, text: Text, logits: Tensor) -> None:
        if text.primary not in self._vectors:
            # It has failed, or its request has ended.
            return
        vector = self._vector(self._vectors[text.primary])
        if not text.started:
            vector.fill_(0.0 if text.average else -math.inf)
            text.started = True
        log_probs = logits.float().log_softmax(-1)
        if text.average:
            vector.add_(log_probs.sum(0), alpha=1 / text.tokens)
        else:
            torch.maximum(vector, log_probs.amax(0), out=vector)

    def _vector(self, index: int) -> Tensor:
        if self.table is None:
            self.table = torch.zeros(VECTORS, self._vocab, device=self._device)
        while index >= self.table.shape[0]:
            self.table = torch.cat((self.table, torch.zeros_like(self.table)))
        return self.table[index]
