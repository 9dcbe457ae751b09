"""The likeliest tokens of every stream, for the requests whose trace asks for them.

The raw streams are read before the primaries' rows are overwritten, the guided distribution where
vLLM takes its log-probs from: behind the grammar, before bias, penalties and temperature. Nothing
is done in a step in which no request asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from divserve.decoding.spec import Top
from divserve.engine.order import GroupOrder
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT, top_logprobs

__all__ = ["TopStep", "TopTokens"]


@dataclass(frozen=True, slots=True)
class _Layout:
    """P positions at which groups ask, of A rows of the batch and B rows of amateurs in all."""

    places: tuple[int, ...]
    """``[P]``: their indices among the positions of the step."""
    asked: tuple[int, ...]
    """``[P]``: how many tokens each asks for."""
    owners: tuple[int, ...]
    """``[A + B + P]``: to which of the P each row belongs, in the order in which they are read."""
    most: int
    """The largest of `asked`."""
    rows: Tensor
    """``[A] int64``: rows of logits of the primaries and their guides."""
    side: Tensor | None
    """``[B] int64``: rows of the amateurs' logits; None without amateurs."""
    primaries: Tensor
    """``[P] int64``: the rows that are sampled from."""


@dataclass(slots=True)
class TopStep:
    """The likeliest tokens of one step, in two parts: the raw streams', then the guided ones."""

    _layout: _Layout
    _found: list[Tensor] = field(default_factory=list)
    """``[rows, 2, k] float32`` each."""
    _complete: bool = False

    def add_streams(self, logits: Tensor, read: Tensor | None) -> None:
        """Reads the raw streams.

        Args:
            logits: ``[R, V]``: raw logits.
            read: ``[2 · G, V]``: those of the amateurs; None if there are none.
        """
        layout = self._layout
        self._found = [top_logprobs(logits, layout.rows, layout.most)]
        if layout.side is not None and read is not None:
            self._found.append(top_logprobs(read, layout.side, layout.most))

    @property
    def complete(self) -> bool:
        """Whether all parts have been read."""
        return self._complete

    def add_guided(self, logits: Tensor) -> None:
        """Reads the distributions that are sampled from, of logits ``[R, V]``; the last part."""
        guided = top_logprobs(logits, self._layout.primaries, self._layout.most)
        self._found.append(guided)
        self._complete = True

    @property
    def values(self) -> Tensor:
        """``[A + B + P, 2, k] float32`` on the device: ids and log-probs, once it is complete."""
        return torch.cat(self._found)

    def read(self, values: Sequence[Sequence[Sequence[float]]]) -> dict[int, Top]:
        """What was found at each position that asks.

        Args:
            values: `values`, on the host.
        """
        layout = self._layout
        streams: list[list[tuple[tuple[int, ...], tuple[float, ...]]]] = [[] for _ in layout.places]
        for owner, (ids, logprobs) in zip(layout.owners, values, strict=True):
            # Log-probs of −inf are last, and of NaN in a row without any probability.
            known = sum(value > -math.inf for value in logprobs[: layout.asked[owner]])
            streams[owner].append((tuple(map(int, ids[:known])), tuple(logprobs[:known])))
        return {place: tuple(own) for place, own in zip(layout.places, streams, strict=True)}


class TopTokens:
    """How many tokens each group asks for, and where its streams are in the step."""

    def __init__(self) -> None:
        self._asked = np.zeros(SLOTS, np.int64)
        """``[capacity] int64`` by slot; 0: none."""
        self._amateurs = np.zeros(SLOTS, np.int64)
        """``[capacity] int64`` by slot: number of amateurs."""
        self._layout: _Layout | None = None

    def add(self, slot: int, order: GroupOrder) -> None:
        """Writes the state of a slot."""
        self._asked, self._amateurs = grown(self._asked, slot), grown(self._amateurs, slot)
        self._asked[slot], self._amateurs[slot] = order.top, order.amateurs

    def lay_out(self, positions: Groups, alone: int, staging: Staging) -> None:
        """Notes the rows of the positions that ask.

        Args:
            positions: all of the step; those with amateurs come last.
            alone: how many have no amateurs.
            staging: sends the arrays to the device.
        """
        self._layout = None
        asked = self._asked[positions.slots]
        places = np.flatnonzero(asked)
        if not len(places):
            return
        rows, own = positions.rows[places], np.arange(len(places))
        of_row, column = np.nonzero(rows != ABSENT)
        of_side, side = self._side_rows(positions, places, alone)
        self._layout = _Layout(
            places=tuple(places.tolist()),
            asked=tuple(asked[places].tolist()),
            owners=tuple(np.concatenate((of_row, of_side, own)).tolist()),
            most=int(asked.max()),
            rows=staging.put(rows[of_row, column]),
            side=staging.put(side) if len(side) else None,
            primaries=staging.put(rows[:, 0]),
        )

    def _side_rows(
        self, positions: Groups, places: np.ndarray, alone: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """To which of `places` each row of the amateurs' logits belongs, and that row."""
        count = len(positions) - alone
        amateurs = self._amateurs[positions.slots[places]]
        owners = [np.flatnonzero(amateurs > which) for which in range(2)]
        # All rows of the first amateur, then all of the second.
        rows = [places[owner] - alone + which * count for which, owner in enumerate(owners)]
        return np.concatenate(owners), np.concatenate(rows)

    def begin(self, logits: Tensor, read: Tensor | None) -> TopStep | None:
        """Reads the raw streams of a step (`TopStep.add_streams`); None if no request asks."""
        if self._layout is None:
            return None
        step = TopStep(self._layout)
        step.add_streams(logits, read)
        return step
