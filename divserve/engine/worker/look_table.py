"""Worker side of look-back decoding: which rows look back in a step, and what comes of it.

A row that looks back (a *looker*) compares its distribution with those of its earlier positions.
Where it comes too close to one, the scheduler takes its token back and has *probes* read one
candidate each; every probe leaves its smallest KL to the prefix in a table. The looker then reads
its last token once more, beside the last probes or after them, and vLLM's sampler draws from
softmax(−KL) of the candidates (`divserve.engine.scheduler.look_back`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from divserve.decoding.look import MAX_CANDIDATES, Look, prefix_end
from divserve.engine.models.hidden_store import Head, HiddenStore
from divserve.engine.order import ProbeOrder
from divserve.engine.worker.look_step import LookStep

__all__ = ["LookTable", "Looker"]


@dataclass(slots=True)
class Looker:
    """What the worker knows of a request that looks back."""

    slot: int
    look: Look
    prompt: int
    known: int
    """Tokens read in its next step that samples, while `fresh`."""
    fresh: bool = True
    """Whether that is its first one, or the first after a preemption."""
    prefix_known: bool = False
    """Whether the log-sum-exps of its prefix have been asked for; they are in its shared blocks."""
    tail_known: bool = False
    """Whether those in its own last block have, so that probes get them with the copy."""
    probes: dict[int, int] = field(default_factory=dict)
    """Candidates' token ids by index."""


@dataclass(slots=True)
class LookTable:
    """Lookers and probes by request id, fed by the scheduler's outputs."""

    device: torch.device
    lookers: dict[str, Looker] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()
    """Lookers that take one of their candidates in this step."""
    kls: Tensor = field(init=False)
    """``[slots · MAX_CANDIDATES] float32``: KL of each candidate to the prefix."""
    _probes: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """By request id: looker, index, first position in the block that is a copy."""
    _fills: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kls = torch.zeros(0, device=self.device)

    def add(self, request_id: str, slot: int, look: Look, prompt: int, known: int) -> None:
        """Takes up a looker of so many prompt tokens and known ones; after a preemption, again."""
        if request_id in self.chosen:
            return
        self.lookers[request_id] = Looker(slot, look, prompt, known)
        if len(self.kls) < (need := (slot + 1) * MAX_CANDIDATES):
            more = torch.zeros(max(need, 2 * len(self.kls)) - len(self.kls), device=self.device)
            self.kls = torch.cat((self.kls, more))

    def add_probe(self, request_id: str, order: ProbeOrder) -> None:
        """Takes up a probe of a looker that is there."""
        primary, index = order.primary, order.index
        self._probes[request_id] = (primary, index, order.copied)
        candidates = self.lookers[primary].probes
        if index == 0:
            candidates.clear()
        candidates[index] = order.token

    def resume(self, request_id: str, output: int) -> None:
        """A looker comes back with so many output tokens, in new blocks unless it only waited."""
        looker = self.lookers.get(request_id)
        if looker is not None and request_id not in self.chosen:
            looker.fresh, looker.prefix_known, looker.tail_known = True, False, False
            looker.known = looker.prompt + output

    def lose(self) -> None:
        """A step has failed: what probes have found so far counts no more, nor what it was to find.

        Everybody whom the step would have told of something fails with it.
        """
        self.kls.fill_(math.nan)
        self._fills = []

    def end(self, request_id: str) -> None:
        """A request has ended: a looker, a probe, or none of ours."""
        self.lookers.pop(request_id, None)
        self._probes.pop(request_id, None)

    def plan(self, found: Sequence[tuple[str, int]], row_of: Mapping[str, int]) -> LookStep | None:
        """What the lookers and probes of a step do; None when it has neither.

        Args:
            found: request id and batch row of every primary that samples; the report's order.
            row_of: batch row of every request that samples.
        """
        lookers = [
            (place, row, self.lookers[name])
            for place, (name, row) in enumerate(found)
            if name in self.lookers
        ]
        probes = [
            (row_of[name], self.lookers[primary], index)
            for name, (primary, index, _) in self._probes.items()
            if name in row_of and primary in self.lookers
        ]
        if not lookers and not probes:
            return None
        chosen = [name in self.chosen for name, _ in found if name in self.lookers]
        for _, row, looker in lookers:
            if looker.fresh:
                looker.fresh = False
                self._ask(row, *looker.look.span(looker.prompt, looker.known))
        self._ask_for_prefixes(row_of)
        return LookStep.pack(lookers, chosen, probes, self.device)

    def _ask_for_prefixes(self, row_of: Mapping[str, int]) -> None:
        """Finds what is not known of prefixes: once per request, but for copied blocks."""
        tails = {}
        for name, (primary, _, copied) in self._probes.items():
            looker = self.lookers.get(primary)
            if looker is None or name not in row_of or looker.tail_known:
                continue
            self._ask(row_of[name], copied if looker.prefix_known else 0, prefix_end(looker.prompt))
            looker.prefix_known = True
            tails[primary] = copied
        for primary in self.chosen & row_of.keys() & self.lookers.keys():
            looker = self.lookers[primary]
            if not looker.tail_known:
                looker.tail_known = True
                self._ask(row_of[primary], tails.get(primary, 0), prefix_end(looker.prompt))

    def _ask(self, row: int, first: int, stop: int) -> None:
        if first < stop:
            self._fills.append((row, first, stop))

    def fill(self, store: HiddenStore, head: Head) -> None:
        """Computes what is not known yet."""
        if self._fills:
            store.fill(self._fills, head)
            self._fills = []
