"""Worker side: which groups are alive, and where their rows are in the batch of this step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput

from divserve.decoding import STATISTICS, Form, Program
from divserve.engine.faults import Contained
from divserve.engine.order import (
    GroupOrder,
    ProbeOrder,
    RowOrder,
    TextOrder,
    chosen_of,
    row_order_of,
)
from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.look_table import LookTable
from divserve.engine.worker.packing import Entry, Found, Packer
from divserve.engine.worker.plan import AmateurLogits, Looks, Plan
from divserve.engine.worker.report import Report
from divserve_kernels import PARAMETERS, Programs
from divserve_kernels import STATISTICS as KERNEL_STATISTICS
from divserve_kernels import Form as KernelForm

__all__ = ["GroupTable", "Plan"]

assert Program._fields == PARAMETERS
assert STATISTICS == KERNEL_STATISTICS
assert {f.name: f.value for f in Form} == {f.name: f.value for f in KernelForm}

SLOTS = 64
"""Programs kept on the device at first; the table grows."""


class GroupTable:
    """Groups by primary id, fed by the scheduler's outputs; plans are cached per batch layout."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.groundings = Groundings(vocab, device)
        self.looks = LookTable(device)
        self._programs = Programs(SLOTS, device)
        self._packer = Packer(self._programs, self.groundings, vocab)
        self._handed: dict[str, list[int]] = {}
        self._entries: dict[str, Entry] = {}
        self._free: list[int] = []
        self._layout: list[str] = []
        self._samples: np.ndarray = np.zeros(0, dtype=bool)
        self._plan: Plan | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def observe(self, scheduler_output: SchedulerOutput) -> None:
        """Takes up new groups and drops finished ones. Call once a step, before `plan`."""
        for request_id in scheduler_output.finished_req_ids:
            self._drop(request_id)
        self._resume(scheduler_output)
        self._handed = {}
        programs: dict[int, Sequence[float]] = {}
        for new in scheduler_output.scheduled_new_reqs:
            order = row_order_of(new.sampling_params)
            if order is None:
                continue
            with Contained(f"Taking up request {new.req_id}"):
                programs |= self._take_up(new, order)
                continue
            self._drop(new.req_id)
        self._programs.write(programs)

    def _take_up(self, new: Any, order: RowOrder) -> dict[int, Sequence[float]]:
        """Takes up what a new row is; returns its programs by slot, if it has any."""
        if isinstance(order, TextOrder):
            self.groundings.add(new.req_id, order)
            return {}
        if isinstance(order, ProbeOrder):
            self.looks.add_probe(new.req_id, order)
            return {}
        programs = self._add(new.req_id, order)
        if order.look is not None:
            prompt = len(new.prompt_token_ids)
            known = len(new.prefill_token_ids or new.prompt_token_ids)
            slot = self._entries[new.req_id].slot
            self.looks.add(new.req_id, slot, order.look, prompt, known)
        return programs

    def _drop(self, request_id: str) -> None:
        """A request has ended, or could not be taken up."""
        self.groundings.end(request_id)
        self.looks.end(request_id)
        if (entry := self._entries.pop(request_id, None)) is not None:
            self._free.append(entry.slot)
            self._layout = []

    def _resume(self, scheduler_output: SchedulerOutput) -> None:
        """Requests that come back: preempted ones, and lookers that waited for their probes."""
        cached = scheduler_output.scheduled_cached_reqs
        self.groundings.restart(cached.resumed_req_ids)
        chosen = chosen_of(scheduler_output)
        if chosen or self.looks.chosen:
            self._layout = []
        self.looks.chosen = chosen
        if cached.resumed_req_ids & self.looks.lookers.keys():
            self._layout = []
            for request_id, output in zip(cached.req_ids, cached.num_output_tokens, strict=True):
                if request_id in cached.resumed_req_ids:
                    self.looks.resume(request_id, output)

    def _add(self, primary: str, order: GroupOrder) -> dict[int, Sequence[float]]:
        """Takes up a group; returns its programs by slot."""
        cooling = order.temperature_program
        rest = (order.guides, cooling is not None, order.grounded, order.amateurs)
        # A preempted one comes back under its old id: it keeps its slot.
        known = self._entries.get(primary)
        slot = self._take_slot() if known is None else known.slot
        self._entries[primary] = Entry(slot, *rest, order.vocab)
        self._layout = []
        if order.output:
            self._handed[primary] = list(order.output)
        programs: dict[int, Sequence[float]] = {2 * slot: order.program}
        return programs if cooling is None else {**programs, 2 * slot + 1: cooling}

    def handed_over(self) -> dict[str, list[int]]:
        """Tokens that requests which are new in this step have from another engine, by their id."""
        return self._handed

    def _take_slot(self) -> int:
        """A slot that no group holds; every slot is free, held or beyond the ones used so far."""
        return self._free.pop() if self._free else len(self._entries)

    def plan(self, req_ids: list[str], samples: np.ndarray) -> Plan | None:
        """The plan of this step, or None when no group samples.

        Args:
            req_ids: request id of each batch row.
            samples: ``[R] bool``: which rows take a token in this step. A group of which a row does
                not is left out; the scheduler then stops its request.
        """
        if req_ids != self._layout or not np.array_equal(samples, self._samples):
            self._plan = self._build(req_ids, samples)
            self._layout, self._samples = list(req_ids), samples.copy()
        return self._plan

    def _build(self, req_ids: list[str], samples: np.ndarray) -> Plan | None:
        row_of = {request_id: i for i, request_id in enumerate(req_ids) if samples[i]}
        found: list[Found] = []
        for primary, entry in self._entries.items():
            rows = [row_of.get(request_id) for request_id in (primary, *entry.guides)]
            here = [row for row in rows if row is not None]
            # A grounding text that could not be read has left no vector.
            lost = entry.grounded and primary not in self.groundings.rows
            if len(here) == len(rows) and not lost:
                found.append((primary, entry, here[0], here[1:]))
        found.sort(key=lambda group: group[1].amateurs > 0)
        with Contained("Planning a step"):
            return self._planned(found, row_of)
        found = [group for group in found if self._can_plan(group, row_of)]
        with Contained("Planning the rest of a step"):
            return self._planned(found, row_of)
        self.looks.lose()
        return None

    def _can_plan(self, group: Found, row_of: Mapping[str, int]) -> bool:
        with Contained(f"Planning a step of request {group[0]}"):
            self._planned([group], row_of)
            return True
        return False

    def _planned(self, found: list[Found], row_of: Mapping[str, int]) -> Plan | None:
        look = self.looks.plan([(primary, row) for primary, _, row, _ in found], row_of)
        return self._packer.pack(found, look) if found or look else None

    def guide(
        self, plan: Plan, logits: Tensor, amateur_logits: AmateurLogits, looks: Looks | None
    ) -> tuple[Tensor, Report] | None:
        """As `Plan.guide`; None if it fails: the scheduler then stops all requests of the plan."""
        with Contained("Guiding the logits of a step"):
            return plan.guide(logits, self.groundings.table, amateur_logits, looks)
        self.looks.lose()
        return None
