"""Worker side of look-back decoding: which rows look back in a step, and what comes of it.

A row that looks back (a *looker*) compares its distribution with those of its earlier positions.
Where it comes too close to one, the scheduler takes its token back and has *probes* read one
candidate each; every probe leaves its smallest KL to the prefix in a table. The looker then reads
its last token once more, beside the last probes or after them, and vLLM's sampler draws from
softmax(−KL) of the candidates (`divserve.engine.look_back`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from divserve.decoding.look import MAX_CANDIDATES, Look, LookState, prefix_end
from divserve.engine.hidden import Head, HiddenStore
from divserve_kernels.rows import send

__all__ = ["LookStep", "LookTable", "chosen_of", "readable"]

NO_LIMIT = 2**31 - 1
FAR = 60.0
"""Nats below the candidates that all other tokens are put: they are drawn only where a mask or a
bias of the request forbids every candidate."""


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

    def add(
        self, request_id: str, slot: int, look: Mapping[str, Any], prompt: int, known: int
    ) -> None:
        """Takes up a looker of so many prompt tokens and known ones; after a preemption, again."""
        if request_id in self.chosen:
            return
        self.lookers[request_id] = Looker(slot, Look.from_wire(look), prompt, known)
        if len(self.kls) < (need := (slot + 1) * MAX_CANDIDATES):
            more = torch.zeros(max(need, 2 * len(self.kls)) - len(self.kls), device=self.device)
            self.kls = torch.cat((self.kls, more))

    def add_probe(self, request_id: str, order: Mapping[str, Any]) -> None:
        """Takes up a probe of a looker that is there."""
        primary, index = str(order["looks_for"]), int(order["index"])
        self._probes[request_id] = (primary, index, int(order["copied"]))
        candidates = self.lookers[primary].probes
        if index == 0:
            candidates.clear()
        candidates[index] = int(order["token"])

    def resume(self, request_id: str, output: int) -> None:
        """A looker comes back with so many output tokens, in new blocks unless it only waited."""
        looker = self.lookers.get(request_id)
        if looker is not None and request_id not in self.chosen:
            looker.fresh, looker.prefix_known, looker.tail_known = True, False, False
            looker.known = looker.prompt + output

    def lose(self) -> None:
        """A step has failed: what probes have found so far counts no more."""
        self.kls.fill_(math.nan)

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


@dataclass(frozen=True, slots=True)
class LookStep:
    """The lookers and probes of one step; lookers come first in every tensor."""

    places: tuple[int, ...]
    """Places of the lookers among the primaries of the report."""
    ks: tuple[int, ...]
    chosen: Tensor
    """``[L] bool``: lookers that take one of their candidates."""
    rows: Tensor
    """``[N] int64``: batch rows."""
    floors: Tensor
    """``[N] int32``: first position that may be compared with."""
    caps: Tensor
    """``[N] int32``: one past the last."""
    windows: Tensor
    """``[N] int32``: most positions, the last ones."""
    most: int
    """At least as long as every span."""
    thresholds: Tensor
    """``[L] float32``."""
    cells: Tensor
    """``[N − L] int64``: where the probes' results go in `LookTable.kls`."""
    choices: Tensor
    """``[3, M] int64``: batch row, token id and cell of each candidate that may be drawn."""
    chosen_rows: Tensor
    """``[C] int64``: their batch rows."""
    candidates: Tensor
    """``[L, K] float32``: token ids; those of `chosen` lookers only."""
    candidate_cells: Tensor
    """``[L, K] int64``: where their results are."""
    temperatures: tuple[Tensor, Tensor] | None
    """Batch rows ``[A] int64`` that are not sampled at their request's temperature, and theirs
    ``[A] float32``: 0 in clear steps of greedy lookers, 1 for the candidates."""
    host_temperatures: tuple[Sequence[int], Sequence[float]]
    """The same on the host."""

    @classmethod
    def pack(
        cls,
        lookers: Sequence[tuple[int, int, Looker]],
        chosen: Sequence[bool],
        probes: Sequence[tuple[int, Looker, int]],
        device: torch.device,
    ) -> LookStep:
        """Builds the arrays on the host and sends them without waiting for the device.

        Args:
            lookers: place, batch row and state of each.
            chosen: whether it takes one of its candidates.
            probes: batch row, looker and index of each.
            device: where the logits are.
        """
        most_k = max((looker.look.k for _, _, looker in lookers), default=0)
        spans = [_limits(looker) for _, _, looker in lookers]
        spans += [(0, prefix_end(looker.prompt), NO_LIMIT) for _, looker, _ in probes]
        taking = list(zip(lookers, chosen, strict=True))
        drawn = [
            (row, token, looker.slot * MAX_CANDIDATES + index)
            for (_, row, looker), taken in taking
            if taken
            for index, token in looker.probes.items()
        ]
        tokens, cells = [], []
        for (_, _, looker), taken in taking:
            known = [looker.probes[i] for i in range(len(looker.probes))] if taken else []
            tokens.append([*known, *[0] * (most_k - len(known))])
            cells.append([looker.slot * MAX_CANDIDATES + i for i in range(most_k)])
        floors, caps, windows = zip(*spans, strict=True)
        own = [
            (row, float(taken)) for (_, row, looker), taken in taking if taken or looker.look.greedy
        ]

        def sent(values: object, dtype: torch.dtype = torch.int64) -> Tensor:
            return send(values, dtype, device)

        return cls(
            places=tuple(place for place, _, _ in lookers),
            ks=tuple(looker.look.k for _, _, looker in lookers),
            chosen=sent(list(chosen), torch.bool),
            rows=sent([row for _, row, _ in lookers] + [row for row, _, _ in probes]),
            floors=sent(floors, torch.int32),
            caps=sent(caps, torch.int32),
            windows=sent(windows, torch.int32),
            most=max(min(cap - floor, window) for floor, cap, window in spans),
            thresholds=sent([looker.look.threshold for _, _, looker in lookers], torch.float32),
            cells=sent([looker.slot * MAX_CANDIDATES + index for _, looker, index in probes]),
            choices=sent(drawn).reshape(-1, 3).T,
            chosen_rows=sent([row for (_, row, _), taken in taking if taken]),
            candidates=sent(tokens, torch.float32).reshape(len(lookers), most_k),
            candidate_cells=sent(cells).reshape(len(lookers), most_k),
            temperatures=_split(own, device) if own else None,
            host_temperatures=([row for row, _ in own], [value for _, value in own]),
        )

    def run(self, logits: Tensor, guided: Tensor, store: HiddenStore, kls: Tensor) -> Tensor:
        """Compares the distributions of the step with earlier ones.

        Args:
            logits: ``[R, V]``: raw ones of all rows.
            guided: ``[R, V] float32``: the rows that take a candidate are overwritten.
            store: has the hidden states of this step, and the log-sum-exps of all spans.
            kls: `LookTable.kls`; the probes' results are written to it.

        Returns:
            ``[L, 3 + 2 K] float32`` on the device: smallest KL, token that the nearest step
            predicted, `LookState`, K candidates, their KLs.
        """
        raw = logits.index_select(0, self.rows).float()
        lse = raw.logsumexp(-1)
        store.sampled(self.rows, lse)
        probs = (raw - lse[:, None]).exp()
        negative_entropy = -torch.special.entr(probs).sum(-1)
        found = store.nearest(self.rows, self._spans(store), self.most, probs, negative_entropy)
        count = len(self.places)
        kls.index_copy_(0, self.cells, found.kl[count:])
        self._offer(guided, kls)
        return self._report(raw[:count], found.kl[:count], found.position[:count], kls)

    def _spans(self, store: HiddenStore) -> tuple[Tensor, Tensor]:
        last = store.seq_lens.index_select(0, self.rows).to(torch.int32) - 1
        stops = torch.minimum(last, self.caps)
        firsts = torch.minimum(self.floors, stops)
        return torch.maximum(firsts, stops - self.windows), stops

    def _offer(self, guided: Tensor, kls: Tensor) -> None:
        """Gives the rows that choose the logits −KL at their candidates."""
        if len(self.chosen_rows):
            rows, tokens, cells = self.choices
            offered = -kls.index_select(0, cells)
            others = guided.index_select(0, self.chosen_rows)
            others = others - others.amax(-1, keepdim=True) - FAR + offered.amin()
            guided.index_copy_(0, self.chosen_rows, others)
            guided.index_put_((rows, tokens), offered)

    def _report(self, raw: Tensor, kl: Tensor, position: Tensor, kls: Tensor) -> Tensor:
        top = raw.topk(self.candidates.shape[1]).indices.float()
        alarm = torch.where(kl <= self.thresholds, float(LookState.ALARM), float(LookState.CLEAR))
        state = torch.where(self.chosen, float(LookState.CHOSEN), alarm)
        candidates = torch.where(self.chosen[:, None], self.candidates, top)
        head = torch.stack((kl, position.float() + 1, state), dim=1)
        return torch.cat((head, candidates, kls[self.candidate_cells]), dim=1)


def _split(own: Sequence[tuple[int, float]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows ``[A] int64`` and their values ``[A] float32``."""
    rows, values = zip(*own, strict=True)
    return send(rows, torch.int64, device), send(values, torch.float32, device)


def _limits(looker: Looker) -> tuple[int, int, int]:
    """First position, one past the last, and most positions that a looker is compared with."""
    look = looker.look
    cap = prefix_end(looker.prompt) if look.reference == "prefix" else NO_LIMIT
    floor = looker.prompt - 1 if look.reference == "generated" else 0
    return floor, cap, look.window or NO_LIMIT


def readable(values: Sequence[float], k: int) -> tuple[float, ...]:
    """A row of `LookStep.run` without what its state does not have (see ``LookRow``).

    Args:
        values: ``3 + 2 K`` numbers.
        k: the request's candidates, at most K.
    """
    most = (len(values) - 3) // 2
    state = int(values[2]) if not math.isnan(values[2]) else LookState.CLEAR
    if state == LookState.CLEAR:
        return tuple(values[:3])
    tokens, kls = values[3 : 3 + k], values[3 + most : 3 + most + k]
    return (*values[:3], *tokens, *(kls if state == LookState.CHOSEN else ()))


def chosen_of(scheduler_output: Any) -> AbstractSet[str]:
    """The lookers that take one of their candidates in this step."""
    return getattr(scheduler_output, "divserve_chosen", frozenset())
