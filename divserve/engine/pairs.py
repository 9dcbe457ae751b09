"""Worker side: which pairs are alive, and where their rows are in the batch of this step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput

from divserve.decoding import STATISTICS, Form, Row
from divserve.engine.group import PAIR_KEY
from divserve_kernels import PARAMETERS, Programs, Rows, guide
from divserve_kernels import STATISTICS as KERNEL_STATISTICS
from divserve_kernels import Form as KernelForm

__all__ = ["PairTable", "Plan"]

assert Row._fields == PARAMETERS
assert STATISTICS == KERNEL_STATISTICS
assert {f.name: f.value for f in Form} == {f.name: f.value for f in KernelForm}

SLOTS = 64
"""Programs kept on the device at first; the table grows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to the logits and tokens of one step."""

    primaries: tuple[str, ...]
    rows: Rows

    def guide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Guides the primary rows of the raw logits ``[R, V]``.

        Returns:
            The logits in float32 ``[R, V]`` (the same tensor if they were float32) and the
            statistics ``[G, len(STATISTICS)] float32``, both on the device, unsynchronised.
        """
        guided = logits.to(torch.float32)
        return guided, guide(logits, self.rows, out=guided)

    def copy_tokens(self, sampled: Tensor) -> None:
        """Gives every guide row its primary's token; ``sampled`` ``[R, 1]`` changes in place."""
        sampled.index_copy_(0, self.rows.guide, sampled.index_select(0, self.rows.primary))


class Pair(NamedTuple):
    """What the worker knows of a guide."""

    primary: str
    """Request id of its primary."""
    slot: int
    """Where its program is."""


class PairTable:
    """Pairs by guide id, fed by the scheduler's outputs; plans are cached per batch layout."""

    def __init__(self, device: torch.device) -> None:
        self._programs = Programs(SLOTS, device)
        self._pairs: dict[str, Pair] = {}
        self._free: list[int] = []
        self._layout: list[str] = []
        self._samples: np.ndarray = np.zeros(0, dtype=bool)
        self._plan: Plan | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    def observe(self, scheduler_output: SchedulerOutput) -> None:
        """Takes up new pairs and drops finished ones. Call once a step, before `plan`."""
        for request_id in scheduler_output.finished_req_ids:
            if (pair := self._pairs.pop(request_id, None)) is not None:
                self._free.append(pair.slot)
                self._layout = []
        started: dict[int, Sequence[float]] = {}
        for new in scheduler_output.scheduled_new_reqs:
            params = new.sampling_params
            order = (params.extra_args or {}).get(PAIR_KEY) if params is not None else None
            if order is not None:
                # A preempted pair comes back under its old id: it keeps its slot.
                known = self._pairs.get(new.req_id)
                slot = self._take_slot() if known is None else known.slot
                self._pairs[new.req_id] = Pair(order["primary"], slot)
                started[slot] = order["row"]
                self._layout = []
        self._programs.write(started)

    def _take_slot(self) -> int:
        """A slot that no pair holds; every slot is free, held or beyond the ones used so far."""
        return self._free.pop() if self._free else len(self._pairs)

    def plan(self, req_ids: list[str], samples: np.ndarray) -> Plan | None:
        """The plan of this step, or None when no pair samples.

        Args:
            req_ids: request id of each batch row.
            samples: ``[R] bool``: which rows take a token in this step. A pair with only one such
                row is left out; the scheduler then stops its request.
        """
        if req_ids != self._layout or not np.array_equal(samples, self._samples):
            self._plan = self._build(req_ids, samples)
            self._layout, self._samples = list(req_ids), samples.copy()
        return self._plan

    def _build(self, req_ids: list[str], samples: np.ndarray) -> Plan | None:
        row_of = {request_id: i for i, request_id in enumerate(req_ids)}
        found = []
        for guide_id, pair in self._pairs.items():
            primary, second = row_of.get(pair.primary), row_of.get(guide_id)
            if primary is None or second is None or not (samples[primary] and samples[second]):
                continue
            found.append((pair.primary, pair.slot, primary, second))
        if not found:
            return None
        ids, slots, primary_rows, guide_rows = zip(*found, strict=True)
        rows = Rows.pack(self._programs, slots, primary_rows, guide_rows)
        return Plan(primaries=ids, rows=rows)
