"""The scored texts of a worker: which of their positions have been read, and what was found.

A text is the end of all prompts of its group. Its rows may be prefilled at different paces, so the
hidden states of the row that is ahead are kept until the others get there: H numbers a token, while
its keys and values are in memory anyway. A position is reduced once, also if a row that was
preempted reads it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from divserve.decoding import FIGURES, Reading
from divserve.engine.order import GroupOrder
from divserve_kernels.streams import send

__all__ = ["Job", "Kind", "Text"]


@dataclass(frozen=True, slots=True)
class Kind:
    """What texts must have in common to be reduced in one slice."""

    rows: int
    """Prompts of a group."""
    guided: bool
    reference: bool
    amateurs: int
    """Models that the program contrasts with."""
    second: bool
    """Whether a second program measures a temperature."""
    top: int
    ids: int
    """The longest list of tokens whose log-probs are returned."""


@dataclass(slots=True)
class Text:
    """A text that is being read."""

    name: str
    """The primary's request id."""
    slot: int
    reading: Reading
    kind: Kind
    tokens: list[int]
    """The scored tokens; N of them."""
    known: list[int] = field(default_factory=list)
    """By row: positions of the text whose states have been seen."""
    held: list[list[Tensor]] = field(default_factory=list)
    """By row: states ``[n, H]`` of positions that are not reduced yet."""
    done: int = 0
    """Positions that have been reduced."""
    failed: bool = False
    found: tuple[Tensor, ...] = ()
    """Figures, ids and log-probs of the likeliest tokens, log-probs of the chosen ids."""
    sent: tuple[Tensor, Tensor] | None = None
    """On the device: the tokens ``[N] int64`` and the ids ``[N, M] int64``."""

    @classmethod
    def of(
        cls, name: str, slot: int, order: GroupOrder, reading: Reading, prompt: Sequence[int]
    ) -> Text:
        """A text of which nothing has been read.

        Args:
            name: the primary's request id.
            slot: of its group.
            order: on the group.
            reading: what is asked for.
            prompt: the primary's token ids.
        """
        rows = 1 + len(order.guides)
        kind = Kind(
            rows=rows,
            guided=reading.guided,
            reference=reading.reference,
            amateurs=order.amateurs,
            second=order.temperature_program is not None,
            top=reading.top,
            ids=max(map(len, reading.ids), default=0),
        )
        tokens = list(prompt[-reading.tokens :])
        held: list[list[Tensor]] = [[] for _ in range(rows)]
        return cls(name, slot, reading, kind, tokens, [0] * rows, held)

    @property
    def is_read(self) -> bool:
        """Whether all positions have been reduced."""
        return self.done == len(self.tokens) and not self.failed

    def take(self, column: int, begin: int, states: Tensor) -> None:
        """Takes the new ones among the states of a row.

        Args:
            column: of the row in its group.
            begin: the first one's place in the text; may be negative.
            states: ``[n, H]``.
        """
        first = max(begin, self.known[column])
        last = min(begin + len(states), len(self.tokens))
        if first == self.known[column] and first < last:
            self.held[column].append(states[first - begin : last - begin])
            self.known[column] = last

    def job(self) -> Job | None:
        """The positions that all rows have reached; None if there are no new ones."""
        last = min(self.known)
        if last == self.done:
            return None
        states = [self._released(column, last - self.done) for column in range(len(self.known))]
        job = Job(self, self.done, last, states)
        self.done = last
        return job

    def keep(self) -> None:
        """Copies the states that are still held: their memory belongs to this step's forward."""
        for column, held in enumerate(self.held):
            if held:
                self.held[column] = [torch.cat(held)]

    def _released(self, column: int, count: int) -> Tensor:
        held = self.held[column]
        states = held[0] if len(held) == 1 else torch.cat(held)
        self.held[column] = [states[count:]] if count < len(states) else []
        return states[:count]

    def asked(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The tokens and the ids on the device, sent once."""
        if self.sent is None:
            ids = np.zeros((len(self.tokens), self.kind.ids), np.int64)
            for place, own in enumerate(self.reading.ids):
                ids[place, : len(own)] = own
            tokens = send(self.tokens, torch.int64, device)
            self.sent = tokens, send(ids, torch.int64, device)
        return self.sent

    def write(self, first: int, last: int, parts: Sequence[Tensor]) -> None:
        """Notes what was found of the positions ``first:last``: one tensor for each of `found`."""
        if not self.found:
            count, kind, device = len(self.tokens), self.kind, parts[0].device
            self.found = (
                torch.empty(count, len(FIGURES), device=device),
                torch.empty(count, kind.top, dtype=torch.int32, device=device),
                torch.empty(count, kind.top, device=device),
                torch.empty(count, kind.ids, device=device),
            )
        for whole, part in zip(self.found, parts, strict=True):
            whole[first:last] = part


@dataclass(frozen=True, slots=True)
class Job:
    """Positions of one text that are reduced in this step."""

    text: Text
    first: int
    last: int
    states: list[Tensor]
    """By row: ``[last − first, H]``."""
