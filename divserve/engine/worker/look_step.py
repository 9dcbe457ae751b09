"""Look-back decoding on the device: the comparisons and draws of one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from divserve.decoding.look import LookState
from divserve.engine.models.hidden_store import HiddenStore
from divserve_kernels import likeliest

__all__ = ["LookStep", "readable"]

LEAST = -1e30
"""Replaces logits of −inf."""
FAR = 60.0
"""How many nats below the candidates all other tokens are put: they are only drawn if a mask or a
bias of the request rules out every candidate."""


@dataclass(frozen=True, slots=True)
class LookStep:
    """The L requests that look back in a step, followed by their probes; N rows in all."""

    rows: Tensor
    """``[N] int64``."""
    limits: Tensor
    """``[3, N] int32``: first position that may be compared with, one past the last, and the
    largest number of positions (the last ones)."""
    most: int
    """No span is longer."""
    thresholds: Tensor
    """``[L] float32``."""
    chosen: Tensor
    """``[L] bool``: requests that take one of their candidates."""
    chosen_rows: Tensor
    """``[C] int64``: their rows."""
    choices: Tensor
    """``[3, M] int64``: row, token id and cell of each candidate that may be drawn; a cell is an
    index into the table of KLs."""
    candidates: Tensor
    """``[L, K] float32``: token ids; only those of `chosen` requests."""
    candidate_cells: Tensor
    """``[L, K] int64``: cells of their KLs."""
    probe_cells: Tensor
    """``[N − L] int64``: cells that the probes' KLs are written to."""

    def run(self, logits: Tensor, guided: Tensor, store: HiddenStore, kls: Tensor) -> Tensor:
        """Compares the distributions of the step with earlier ones.

        Args:
            logits: ``[R, V]``: raw logits of all rows.
            guided: ``[R, V] float32``: the rows that take a candidate are overwritten.
            store: holds the hidden states of this step, and the log-sum-exps of all spans.
            kls: ``[cells] float32``: KL of each candidate to its prefix; probes write theirs.

        Returns:
            ``[L, 3 + 2 K] float32`` on the device: smallest KL, token that the nearest step
            predicted, `LookState`, K candidates, their KLs.
        """
        # Finite, so that tokens without probability add 0 to Σ p z.
        raw = logits.index_select(0, self.rows).float().clamp_(min=LEAST)
        lse = raw.logsumexp(-1)
        store.sampled(self.rows, lse)
        probs = (raw - lse[:, None]).exp_()
        negative_entropy = torch.linalg.vecdot(probs, raw) - lse
        found = store.nearest(self.rows, self._spans(store), self.most, probs, negative_entropy)
        count = len(self.thresholds)
        kls.index_copy_(0, self.probe_cells, found.kl[count:])
        self._offer(guided, kls)
        return self._report(raw[:count], found.kl[:count], found.position[:count], kls)

    def _spans(self, store: HiddenStore) -> tuple[Tensor, Tensor]:
        floors, caps, windows = self.limits
        last = store.seq_lens.index_select(0, self.rows).to(torch.int32) - 1
        stops = torch.minimum(last, caps)
        firsts = torch.minimum(floors, stops)
        return torch.maximum(firsts, stops - windows), stops

    def _offer(self, guided: Tensor, kls: Tensor) -> None:
        """Writes logits of −KL at the candidates of the rows that take one."""
        if len(self.chosen_rows):
            rows, tokens, cells = self.choices
            offered = -kls.index_select(0, cells)
            others = guided.index_select(0, self.chosen_rows)
            # Each row has its own minimum: another row's KLs may be NaN.
            least = torch.full_like(guided[:, 0], math.inf).scatter_reduce(0, rows, offered, "amin")
            others = others - others.amax(-1, keepdim=True) - FAR
            others += least.index_select(0, self.chosen_rows)[:, None]
            guided.index_copy_(0, self.chosen_rows, others)
            guided.index_put_((rows, tokens), offered)

    def _report(self, raw: Tensor, kl: Tensor, position: Tensor, kls: Tensor) -> Tensor:
        near = kl <= self.thresholds
        alarm = torch.where(near, float(LookState.ALARM), float(LookState.CLEAR))
        state = torch.where(self.chosen, float(LookState.CHOSEN), alarm)
        top = likeliest(raw, near & ~self.chosen, self.candidates.shape[1]).float()
        candidates = torch.where(self.chosen[:, None], self.candidates, top)
        head = torch.stack((kl, position.float() + 1, state), dim=1)
        return torch.cat((head, candidates, kls[self.candidate_cells]), dim=1)


def readable(values: Sequence[float], k: int) -> tuple[float, ...]:
    """One request's numbers from `LookStep.run`, without those that its state lacks (``LookRow``).

    Args:
        values: ``3 + 2 K`` numbers.
        k: the request's number of candidates, at most K.
    """
    most = (len(values) - 3) // 2
    state = int(values[2]) if not math.isnan(values[2]) else LookState.CLEAR
    if state == LookState.CLEAR:
        return tuple(values[:3])
    tokens, kls = values[3 : 3 + k], values[3 + most : 3 + most + k]
    return (*values[:3], *tokens, *(kls if state == LookState.CHOSEN else ()))
