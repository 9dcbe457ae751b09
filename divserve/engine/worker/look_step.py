"""Worker side of look-back decoding: the comparisons and draws of one step, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from divserve.decoding.look import MAX_CANDIDATES, LookState, prefix_end
from divserve.engine.models.hidden_store import HiddenStore
from divserve_kernels.streams import send

if TYPE_CHECKING:
    from divserve.engine.worker.look_table import Looker

__all__ = ["LookStep", "readable"]

NO_LIMIT = 2**31 - 1
LEAST = -1e30
"""What stands for a logit of −inf."""
FAR = 60.0
"""Nats below the candidates that all other tokens are put: they are drawn only where a mask or a
bias of the request forbids every candidate."""


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
        # Finite, so that what has no probability adds 0 to Σ p z.
        raw = logits.index_select(0, self.rows).float().clamp_(min=LEAST)
        lse = raw.logsumexp(-1)
        store.sampled(self.rows, lse)
        probs = (raw - lse[:, None]).exp_()
        negative_entropy = torch.linalg.vecdot(probs, raw) - lse
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
            # Of each row its own: another's may be NaN.
            least = torch.full_like(guided[:, 0], math.inf).scatter_reduce(0, rows, offered, "amin")
            others = others - others.amax(-1, keepdim=True) - FAR
            others += least.index_select(0, self.chosen_rows)[:, None]
            guided.index_copy_(0, self.chosen_rows, others)
            guided.index_put_((rows, tokens), offered)

    def _report(self, raw: Tensor, kl: Tensor, position: Tensor, kls: Tensor) -> Tensor:
        near = kl <= self.thresholds
        alarm = torch.where(near, float(LookState.ALARM), float(LookState.CLEAR))
        state = torch.where(self.chosen, float(LookState.CHOSEN), alarm)
        candidates = self.candidates
        # Only a GPU would have to be asked whether anybody needs them.
        if near.device.type != "cpu" or bool(near.any()):
            top = raw.topk(candidates.shape[1]).indices.float()
            candidates = torch.where(self.chosen[:, None], candidates, top)
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
