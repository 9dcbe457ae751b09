"""Worker side of grounding texts: their distributions, reduced to one vector per request.

While a text is prefilled, the logits of all its positions are computed in slices and reduced at
once, to max_j ln q_j(v) or mean_j ln q_j(v): V numbers are kept, whatever the length of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from divserve.engine.faults import Contained
from divserve.engine.order import TextOrder

__all__ = ["Groundings"]

SLICE = 64
"""Positions whose logits are in memory at a time."""
ROWS = 8
"""Vectors kept at first; the table doubles when it is full."""


@dataclass(slots=True)
class Text:
    """A text that is being read."""

    primary: str
    row: int
    tokens: int
    average: bool
    started: bool = False


class Groundings:
    """Vectors by primary id, and the texts that are being read by their own request's id."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._device = device
        self._vocab = vocab
        self.table: Tensor | None = None
        """``[rows, V] float32``: a vector per grounded request; None before the first."""
        self.rows: dict[str, int] = {}
        """Program of each primary."""
        self._free: list[int] = []
        self._texts: dict[str, Text] = {}

    def add(self, request_id: str, order: TextOrder) -> None:
        """Takes up a text, or starts it again after a preemption."""
        primary = order.primary
        if primary not in self.rows:
            self.rows[primary] = self._free.pop() if self._free else len(self.rows)
        self._texts[request_id] = Text(primary, self.rows[primary], order.tokens, order.average)

    def restart(self, request_ids: set[str]) -> None:
        """Preempted texts are read again from their first token."""
        for request_id in request_ids & self._texts.keys():
            self._texts[request_id].started = False

    def end(self, request_id: str) -> None:
        """A request has ended: a text, a primary, or none of ours."""
        self._texts.pop(request_id, None)
        if (row := self.rows.pop(request_id, None)) is not None:
            self._free.append(row)

    def reading(self) -> bool:
        """Whether a text may be read in this step."""
        return len(self._texts) > 0

    def read(
        self,
        req_ids: list[str],
        starts: np.ndarray,
        hidden_states: Tensor,
        compute_logits: Callable[[Tensor], Tensor],
    ) -> None:
        """Reduces what the texts of this step have read.

        One that fails takes the vector of its request along, which is then not guided any more.

        Args:
            req_ids: request id of each batch row.
            starts: ``[R + 1] int32``: where the rows' tokens begin.
            hidden_states: ``[T, H]`` of all tokens of the step.
            compute_logits: the model's head, ``[n, H]`` to ``[n, V]``.
        """
        for batch_row, request_id in enumerate(req_ids):
            text = self._texts.get(request_id)
            if text is None:
                continue
            start, stop = int(starts[batch_row]), int(starts[batch_row + 1])
            with Contained(f"Reading {request_id}"):
                self._reduce(text, hidden_states[start:stop], compute_logits)
                continue
            self.end(request_id)
            self.end(text.primary)

    def _reduce(
        self, text: Text, hidden_states: Tensor, compute_logits: Callable[[Tensor], Tensor]
    ) -> None:
        vector = self._vector(text.row)
        if not text.started:
            vector.fill_(0.0 if text.average else -math.inf)
            text.started = True
        for states in hidden_states.split(SLICE):
            log_probs = compute_logits(states).float().log_softmax(-1)
            if text.average:
                vector.add_(log_probs.sum(0), alpha=1 / text.tokens)
            else:
                torch.maximum(vector, log_probs.amax(0), out=vector)

    def _vector(self, row: int) -> Tensor:
        if self.table is None:
            self.table = torch.zeros(ROWS, self._vocab, device=self._device)
        while row >= self.table.shape[0]:
            self.table = torch.cat((self.table, torch.zeros_like(self.table)))
        return self.table[row]
