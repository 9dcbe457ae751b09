"""Reads the scored texts: reduces the logits of their positions while they are prefilled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divserve.engine.faults import log_fault
from divserve.engine.models.loader import amateur_logits
from divserve.engine.order import GroupOrder, ReadOrder
from divserve.engine.worker import reduction
from divserve.engine.worker.applied import Applied
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.slots import Groups
from divserve.engine.worker.texts import Job, Kind, Text

__all__ = ["Reader"]


class Reader:
    """The texts that are being read, by their primary's id."""

    def __init__(self, vocab: int, device: torch.device, programs: GroupPrograms) -> None:
        self._device = device
        self._slice = reduction.slice_length(vocab)
        self._applied = Applied(device, programs)
        self._texts: dict[str, Text] = {}
        self._rows: dict[str, tuple[str, int, int]] = {}
        """By request id of a row: its primary, its column, and the length of its prompt."""
        self._computed: dict[str, int] = {}
        """By request id: where in its tokens its part of this step begins."""

    def add(self, slot: int, order: GroupOrder, new: Any) -> None:
        """Adds a group whose text is scored, unless it is known and only resumes.

        Args:
            slot: of the group.
            order: on the group.
            new: vLLM's ``NewRequestData`` of its primary.
        """
        if order.reading is not None and new.req_id not in self._texts:
            prompt = new.prompt_token_ids
            self._texts[new.req_id] = Text.of(new.req_id, slot, order, order.reading, prompt)
            self._rows[new.req_id] = new.req_id, 0, len(prompt)

    def add_guide(self, order: ReadOrder, new: Any) -> None:
        """Adds the row of a guide."""
        self._rows[new.req_id] = order.primary, order.column, len(new.prompt_token_ids)

    def observe(self, scheduler_output: Any) -> None:
        """Notes where the rows of a step begin; call it when the new ones have been added."""
        if not self._rows:
            return
        cached = scheduler_output.scheduled_cached_reqs
        places = zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        self._computed = {name: place for name, place in places if name in self._rows}
        for new in scheduler_output.scheduled_new_reqs:
            if new.req_id in self._rows:
                self._computed[new.req_id] = new.num_computed_tokens

    def end(self, request_id: str) -> None:
        """A request has ended."""
        self._texts.pop(request_id, None)
        self._rows.pop(request_id, None)

    def legible(self, groups: Groups) -> Groups:
        """The groups without those whose text has not been read to its end."""
        if not self._texts:
            return groups
        read = [name not in self._texts or self._texts[name].is_read for name in groups.names]
        return groups.select(np.array(read, np.bool_))

    def found(self, names: Sequence[str]) -> dict[str, tuple[Tensor, ...]]:
        """What was found in the texts of these primaries, in the step of their first token.

        In a step of a later one, the part that is computed begins behind the prompt.
        """
        if not self._texts:
            return {}
        first = [n for n in names if n in self._texts and self._computed[n] < self._rows[n][2]]
        return {name: self._texts[name].found for name in first}

    def read(self, req_ids: list[str], starts: np.ndarray, forward: Forward, ranks: Ranks) -> None:
        """Reduces the part of each text that was read in this step.

        If that fails, the text's request samples nothing. Its logits are still computed, because
        other ranks do the same.

        Args:
            req_ids: request id of each row.
            starts: ``[R + 1] int32``: where each row's tokens begin.
            forward: the forward pass, with the states of all tokens of the step.
            ranks: compute the logits together.
        """
        if not self._texts:
            return
        touched: dict[str, Text] = {}
        for row, request_id in enumerate(req_ids):
            primary, column, length = self._rows.get(request_id, ("", 0, 0))
            if (text := self._texts.get(primary)) is None:
                continue
            states = forward.hidden_states[int(starts[row]) : int(starts[row + 1])]
            # The state at a position gives the distribution of the next token.
            begin = self._computed[request_id] - (length - len(text.tokens) - 1)
            text.take(column, begin, states)
            touched[primary] = text
        kinds: defaultdict[Kind, list[Job]] = defaultdict(list)
        for text in touched.values():
            if (job := text.job()) is not None:
                kinds[text.kind].append(job)
            text.keep()
        for kind, jobs in kinds.items():
            self._reduce(kind, jobs, forward, ranks)

    def _reduce(self, kind: Kind, jobs: Sequence[Job], forward: Forward, ranks: Ranks) -> None:
        """Reduces positions of several texts, slice by slice."""
        streams = [_joined([job.states[c] for job in jobs]) for c in range(kind.rows)]
        counts = [job.last - job.first for job in jobs]
        slots = np.repeat([job.text.slot for job in jobs], counts)
        parts, error = [], None
        asked: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(streams[0]), self._slice):
            part = slice(start, start + self._slice)
            with ranks.together():
                logits = [forward.head(states[part]) for states in streams]
                side = self._amateurs(kind, streams[0][part], forward)
            if error is not None:
                continue
            try:
                asked = asked or _asked(jobs, self._device)
                parts.append(
                    self._slice_of(kind, slots[part], logits, side, [x[part] for x in asked])
                )
            except Exception as fault:
                log_fault("Scoring texts", fault)
                error = fault
        if error is None:
            _write(jobs, counts, [torch.cat(each) for each in zip(*parts, strict=True)])
        else:
            for job in jobs:
                job.text.failed = True

    def _amateurs(self, kind: Kind, states: Tensor, forward: Forward) -> Tensor | None:
        if not (kind.reference or (kind.guided and kind.amateurs)):
            return None
        rows = torch.arange(len(states), device=self._device)
        return amateur_logits(forward.model, states, rows)

    def _slice_of(
        self,
        kind: Kind,
        slots: np.ndarray,
        logits: list[Tensor],
        side: Tensor | None,
        asked: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """What is kept of a slice: as `Text.found`."""
        tokens, ids = asked
        own, chosen = logits[0], logits[0]
        if kind.guided:
            chosen = self._applied.logits(kind, slots, logits, side)
        guide = logits[1] if kind.rows > 1 else None
        reference = side[: len(tokens)] if kind.reference and side is not None else None
        return reduction.reduced(tokens, ids, kind.top, chosen, own, guide, reference)


def _joined(states: list[Tensor]) -> Tensor:
    return states[0] if len(states) == 1 else torch.cat(states)


def _asked(jobs: Sequence[Job], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens ``[T]`` and ids ``[T, M]`` of the positions of all jobs."""
    asked = [(job, job.text.asked(device)) for job in jobs]
    tokens = [tokens[job.first : job.last] for job, (tokens, _) in asked]
    ids = [ids[job.first : job.last] for job, (_, ids) in asked]
    return _joined(tokens), _joined(ids)


def _write(jobs: Sequence[Job], counts: list[int], found: Sequence[Tensor]) -> None:
    splits = [each.split(counts) for each in found]
    for place, job in enumerate(jobs):
        job.text.write(job.first, job.last, [split[place] for split in splits])
