"""Look-back decoding: which requests look back in a step, and the state of each.

A request that looks back compares its distribution with those of its earlier positions. If it comes
too close to one, the scheduler takes its token back and adds *probes* that read one candidate each;
every probe stores its smallest KL to the prefix in a table. The request then reads its last token
again, beside the last probes or after them, and vLLM's sampler draws from softmax(−KL) over the
candidates (`divserve.engine.scheduler.alarms`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from divserve.decoding.look import MAX_CANDIDATES, Look, prefix_end
from divserve.engine.models.hidden_store import Head, store_of
from divserve.engine.order import ProbeOrder
from divserve.engine.worker.look_step import LookStep
from divserve.engine.worker.report import Comparisons
from divserve.engine.worker.slots import SLOTS, Groups, Located, grown
from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT

__all__ = ["LookBack", "Temperatures"]

NO_LIMIT = 2**31 - 1
CELLS = np.arange(MAX_CANDIDATES)

REQUEST = np.dtype(
    [
        ("k", np.int64),  # number of candidates; 0: does not look back
        ("threshold", np.float32),
        ("limits", np.int32, 3),  # as in `LookStep.limits`
        ("prompt", np.int64),  # number of its tokens
        ("greedy", np.bool_),  # whether steps without an alarm take the most likely token
        ("known", np.int64),  # tokens read by its next step that samples, while `fresh`
        ("fresh", np.bool_),  # whether that step is its first, or the first after a preemption
        # Whether the log-sum-exps of its prefix have been requested; they are in shared blocks.
        ("prefix_known", np.bool_),
        # Whether those in its own last block have been, so that probes get them with the copy.
        ("tail_known", np.bool_),
        ("chosen", np.bool_),  # whether it takes one of its candidates in this step
        ("candidates", np.int64),  # how many candidates are known
        ("tokens", np.int64, MAX_CANDIDATES),
        ("copied", np.int32, MAX_CANDIDATES),  # first position in the block that is a copy
    ]
)
"""State of a request that looks back, and of its probes."""
NOTHING = np.zeros((), REQUEST)


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Rows that are not sampled at their request's temperature, and the temperature that they get:
    0 for greedy requests in steps without an alarm, 1 for the draw among candidates."""

    rows: Tensor
    """``[A] int64`` on the device."""
    values: Tensor
    """``[A] float32`` on the device."""
    host_rows: np.ndarray
    host_values: np.ndarray


class LookBack:
    """Requests that look back, by the slots of their groups."""

    def __init__(self, device: torch.device) -> None:
        self.kls = torch.zeros(SLOTS * MAX_CANDIDATES, device=device)
        """``[capacity · MAX_CANDIDATES] float32``: KL of each candidate to the prefix."""
        self.temperatures: Temperatures | None = None
        """Temperatures of the current layout."""
        self._requests = np.zeros(SLOTS, REQUEST)
        self._chosen: list[int] = []
        self._fills: list[tuple[int, int, int]] = []
        """Rows and spans of positions whose log-sum-exps are needed."""
        self._step: LookStep | None = None
        self._places: tuple[int, ...] = ()
        self._ks: tuple[int, ...] = ()

    def add(self, slot: int, look: Look | None, prompt: int, known: int) -> None:
        """Writes the state of a slot; ``prompt`` and ``known`` are numbers of tokens."""
        self._requests = grown(self._requests, slot)
        request = self._requests[slot]
        if request["chosen"]:
            return  # It has only been waiting for its probes.
        self._requests[slot] = NOTHING
        if look is None:
            return
        request["k"], request["threshold"] = look.k, look.threshold
        request["greedy"], request["prompt"] = look.greedy, prompt
        request["limits"] = (
            prompt - 1 if look.reference == "generated" else 0,
            prefix_end(prompt) if look.reference == "prefix" else NO_LIMIT,
            look.window or NO_LIMIT,
        )
        request["known"], request["fresh"] = known, True
        while len(self.kls) < len(self._requests) * MAX_CANDIDATES:
            self.kls = torch.cat((self.kls, torch.zeros_like(self.kls)))

    def add_probe(self, slot: int, order: ProbeOrder) -> None:
        """Adds a probe.

        Raises:
            ValueError: its request does not look back, or an earlier candidate is missing.
        """
        request, index = self._requests[slot], order.index
        count = 0 if index == 0 else int(request["candidates"])
        if not request["k"] or index > count:
            raise ValueError(f"a probe of candidate {index} of {count}")
        request["candidates"] = max(count, index + 1)
        request["tokens"][index], request["copied"][index] = order.token, order.copied

    def choose(self, slots: list[int]) -> bool:
        """Sets which requests take a candidate in this step; False if none do now or did before."""
        self._requests["chosen"][self._chosen] = False
        self._requests["chosen"][slots] = True
        changed = bool(slots or self._chosen)
        self._chosen = slots
        return changed

    def resume(self, slot: int, output: int) -> bool:
        """A request resumes with ``output`` output tokens, in new blocks unless it only waited.

        Returns:
            Whether it looks back.
        """
        request = self._requests[slot]
        if not request["k"]:
            return False
        if not request["chosen"]:
            request["fresh"], request["prefix_known"], request["tail_known"] = True, False, False
            request["known"] = request["prompt"] + output
        return True

    def release(self, slot: int) -> None:
        """The slot's group has ended or could not be added."""
        self._requests = grown(self._requests, slot)
        self._requests[slot] = NOTHING

    def lay_out(self, groups: Groups, located: Located, staging: Staging) -> bool:
        """Notes the rows of all groups of the step, and those of probes.

        Returns:
            Whether any of them looks back.
        """
        self._step, self.temperatures = None, None
        places = np.flatnonzero(self._requests["k"][groups.slots])
        if len(places) or len(located.probes):
            slots, rows = groups.slots[places], groups.rows[places, 0]
            requests = self._requests[slots]
            self._step = self._pack(slots, rows, requests, located.probes, staging)
            self._places, self._ks = tuple(places.tolist()), tuple(requests["k"].tolist())
            self._set_temperatures(rows, requests, staging)
            self._ask_for_own(slots, rows, requests)
            self._ask_for_prefixes(located)
        return self._step is not None

    def _pack(
        self,
        slots: np.ndarray,
        rows: np.ndarray,
        requests: np.ndarray,
        probes: np.ndarray,
        staging: Staging,
    ) -> LookStep:
        of, index, probe_rows = probes.T
        limits = np.zeros((3, len(rows) + len(probes)), np.int32)
        limits[:, : len(rows)] = requests["limits"].T
        limits[1, len(rows) :] = _prefix_ends(self._requests["prompt"][of])
        limits[2, len(rows) :] = NO_LIMIT
        cells = slots[:, None] * MAX_CANDIDATES + CELLS[: requests["k"].max(initial=0)]
        tokens, chosen = requests["tokens"][:, : cells.shape[1]], requests["chosen"]
        known = chosen[:, None] & (CELLS[: cells.shape[1]] < requests["candidates"][:, None])
        of_candidate = np.nonzero(known)[0]
        choices = np.stack((rows[of_candidate], tokens[known], cells[known]))
        return LookStep(
            rows=staging.put(np.concatenate((rows, probe_rows))),
            limits=staging.put(limits),
            most=int(np.minimum(limits[1] - limits[0], limits[2]).max()),
            thresholds=staging.put(requests["threshold"]),
            chosen=staging.put(chosen),
            chosen_rows=staging.put(rows[chosen]),
            choices=staging.put(choices),
            candidates=staging.put(np.where(known, tokens, 0).astype(np.float32)),
            candidate_cells=staging.put(cells),
            probe_cells=staging.put(of * MAX_CANDIDATES + index),
        )

    def _set_temperatures(self, rows: np.ndarray, requests: np.ndarray, staging: Staging) -> None:
        own = requests["chosen"] | requests["greedy"]
        if own.any():
            rows, values = rows[own], requests["chosen"][own].astype(np.float32)
            sent = staging.put(rows), staging.put(values)
            self.temperatures = Temperatures(*sent, rows, values)

    def _ask_for_own(self, slots: np.ndarray, rows: np.ndarray, requests: np.ndarray) -> None:
        """Finds unknown log-sum-exps at the positions that a request's first step compares with."""
        fresh = requests["fresh"]
        for row, request in zip(rows[fresh].tolist(), requests[fresh], strict=True):
            floor, cap, window = request["limits"].tolist()
            stop = min(int(request["known"]) - 1, cap)
            self._ask(row, max(min(floor, stop), stop - window), stop)
        self._requests["fresh"][slots] = False

    def _ask_for_prefixes(self, located: Located) -> None:
        """Finds unknown log-sum-exps of prefixes: once per request, except in copied blocks."""
        tails: dict[int, int] = {}
        for slot, index, row in located.probes.tolist():
            request = self._requests[slot]
            if not request["tail_known"]:
                copied = tails[slot] = int(request["copied"][index])
                first = copied if request["prefix_known"] else 0
                self._ask(row, first, prefix_end(int(request["prompt"])))
                request["prefix_known"] = True
        for slot in self._chosen:
            request, row = self._requests[slot], int(located.rows[slot])
            if row != ABSENT and not request["tail_known"]:
                request["tail_known"] = True
                self._ask(row, tails.get(slot, 0), prefix_end(int(request["prompt"])))

    def _ask(self, row: int, first: int, stop: int) -> None:
        if first < stop:
            self._fills.append((row, first, stop))

    def apply(
        self, logits: Tensor, guided: Tensor, model: nn.Module, head: Head
    ) -> Comparisons | None:
        """Compares the step with earlier ones (`LookStep.run`); None if no request looks back.

        Args:
            logits: ``[R, V]``: raw logits.
            guided: ``[R, V] float32``: the rows that take a candidate are overwritten.
            model: the served model, with its store of hidden states.
            head: its ``compute_logits``.
        """
        if self._step is None or (store := store_of(model)) is None:
            return None
        if self._fills:
            store.fill(self._fills, head)
            self._fills = []
        values = self._step.run(logits, guided, store, self.kls)
        return Comparisons(self._places, self._ks, values)

    def lose(self) -> None:
        """A step has failed: discards the KLs of all probes, and the pending log-sum-exps.

        Every request that the step would have had results for fails with it.
        """
        self.kls.fill_(math.nan)
        self._fills = []


def _prefix_ends(prompts: np.ndarray) -> np.ndarray:
    """`prefix_end` of each prompt."""
    ends: np.ndarray = np.maximum(prompts - 1, 1)
    return ends
