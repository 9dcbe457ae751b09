"""Worker side: the tensors that tell the kernels of the groups of one batch layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.look_step import LookStep
from divserve.engine.worker.plan import Plan
from divserve_kernels import ABSENT, Programs, Streams, side_row
from divserve_kernels.streams import send

__all__ = ["Entry", "Found", "Packer"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the worker knows of a group."""

    slot: int
    """Its program is at twice this slot, its second program after it."""
    guides: tuple[str, ...]
    cooling: bool
    grounded: bool
    amateurs: int
    """How many amateur models it compares with."""
    vocab: int | None
    """Token ids from here on are never sampled; None: all may be."""


Found: TypeAlias = tuple[str, Entry, int, list[int]]
"""A group with all its rows in a step: id, entry, the primary's row, the guides' rows."""


class Packer:
    """Packs groups into plans.

    Args:
        programs: the groups' programs, by twice the slot of their entries.
        groundings: the vectors of grounding texts.
        vocab: token ids of the model.
    """

    def __init__(self, programs: Programs, groundings: Groundings, vocab: int) -> None:
        self._programs, self._groundings, self._vocab = programs, groundings, vocab

    def pack(self, found: list[Found], look: LookStep | None) -> Plan:
        """The plan of these groups; those with amateur models come last."""
        alone = [group for group in found if group[1].amateurs == 0]
        aided = found[len(alone) :]
        cooled = [i for i, (_, entry, _, _) in enumerate(found) if entry.cooling]
        pairs = [(row, guide_row) for *_, row, guides in found for guide_row in guides]
        aided_rows = [row for _, _, row, _ in aided]
        return Plan(
            primaries=tuple(primary for primary, *_ in found),
            rows=self._alone(alone) if alone else None,
            aided=self._aided(aided) if aided else None,
            aided_rows=send(aided_rows, torch.int64, self._programs.table.device),
            copies=self._send(pairs),
            cooling=self._cooling([found[i] for i in cooled]) if cooled else None,
            cooled=tuple(cooled),
            limited=self._limits(found),
            look=look,
            third=self._third(found),
        )

    def _third(self, found: list[Found]) -> tuple[Tensor, Tensor] | None:
        """Who has a third stream: a grounding text's vector, or a second amateur's logits."""
        pairs = [
            (place, row)
            for place, (_, entry, row, _) in enumerate(found)
            if entry.grounded or entry.amateurs > 1
        ]
        return self._send(pairs) if pairs else None

    def _limits(self, found: list[Found]) -> tuple[tuple[Tensor, int], ...]:
        """The rows of requests that another engine with fewer token ids must be able to read."""
        limits: dict[int, list[int]] = {}
        for _, entry, row, _ in found:
            if entry.vocab is not None and entry.vocab < self._vocab:
                limits.setdefault(entry.vocab, []).append(row)
        device = self._programs.table.device
        return tuple((send(rows, torch.int64, device), vocab) for vocab, rows in limits.items())

    def _alone(self, found: list[Found]) -> Streams:
        vectors = self._groundings.rows
        return Streams.pack(
            self._programs,
            [2 * entry.slot for _, entry, _, _ in found],
            [row for _, _, row, _ in found],
            [guides[0] if guides else ABSENT for *_, guides in found],
            [side_row(vectors[p]) if e.grounded else ABSENT for p, e, _, _ in found],
        )

    def _aided(self, found: list[Found]) -> Streams:
        """Their second streams are the first amateur's logits, their third ones the second's."""
        count = len(found)
        return Streams.pack(
            self._programs,
            [2 * entry.slot for _, entry, _, _ in found],
            [row for _, _, row, _ in found],
            [side_row(i) for i in range(count)],
            [
                side_row(count + i) if entry.amateurs > 1 else ABSENT
                for i, (_, entry, _, _) in enumerate(found)
            ],
        )

    def _cooling(self, found: list[Found]) -> Streams:
        return Streams.pack(
            self._programs,
            [2 * entry.slot + 1 for _, entry, _, _ in found],
            [row for _, _, row, _ in found],
            [guides[-1] for *_, guides in found],
        )

    def _send(self, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        ends = [[source for source, _ in pairs], [target for _, target in pairs]]
        sent = send(ends, torch.int64, self._programs.table.device)
        return sent[0], sent[1]
