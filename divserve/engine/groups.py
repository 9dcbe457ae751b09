"""Worker side: which groups are alive, and where their rows are in the batch of this step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput

from divserve.decoding import STATISTICS, Form, Row
from divserve.engine.faults import Contained
from divserve.engine.grounding import Groundings
from divserve.engine.group import GROUP_KEY
from divserve.engine.look_step import LookStep
from divserve.engine.looking import LookTable, chosen_of
from divserve.engine.output import Report
from divserve.engine.plan import HelperLogits, Looks, Plan
from divserve_kernels import ABSENT, PARAMETERS, Programs, Rows, helper_row
from divserve_kernels import STATISTICS as KERNEL_STATISTICS
from divserve_kernels import Form as KernelForm
from divserve_kernels.rows import send

__all__ = ["GroupTable", "Plan"]

assert Row._fields == PARAMETERS
assert STATISTICS == KERNEL_STATISTICS
assert {f.name: f.value for f in Form} == {f.name: f.value for f in KernelForm}

SLOTS = 64
"""Programs kept on the device at first; the table grows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the worker knows of a group."""

    slot: int
    """Its program is at twice this slot, its second program after it."""
    guides: tuple[str, ...]
    cooling: bool
    grounded: bool
    helpers: int
    """How many helper models it compares with."""
    vocab: int | None
    """Token ids from here on are never sampled; None: all may be."""


class GroupTable:
    """Groups by primary id, fed by the scheduler's outputs; plans are cached per batch layout."""

    def __init__(self, vocab: int, device: torch.device) -> None:
        self.groundings = Groundings(vocab, device)
        self.looks = LookTable(device)
        self._vocab = vocab
        self._programs = Programs(SLOTS, device)
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
            params = new.sampling_params
            order = (params.extra_args or {}).get(GROUP_KEY) if params is not None else None
            if order is None:
                continue
            with Contained(f"Taking up request {new.req_id}"):
                programs |= self._take_up(new, order)
                continue
            self._drop(new.req_id)
        self._programs.write(programs)

    def _take_up(self, new: Any, order: dict[str, Any]) -> dict[int, Sequence[float]]:
        """Takes up what a new row is; returns its programs by slot, if it has any."""
        if "grounds" in order:
            self.groundings.add(new.req_id, order)
            return {}
        if "looks_for" in order:
            self.looks.add_probe(new.req_id, order)
            return {}
        programs = self._add(new.req_id, order)
        if order["look"] is not None:
            prompt = len(new.prompt_token_ids)
            known = len(new.prefill_token_ids or new.prompt_token_ids)
            slot = self._entries[new.req_id].slot
            self.looks.add(new.req_id, slot, order["look"], prompt, known)
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
        chosen = frozenset(chosen_of(scheduler_output))
        if chosen or self.looks.chosen:
            self._layout = []
        self.looks.chosen = chosen
        if cached.resumed_req_ids & self.looks.lookers.keys():
            self._layout = []
            for request_id, output in zip(cached.req_ids, cached.num_output_tokens, strict=True):
                if request_id in cached.resumed_req_ids:
                    self.looks.resume(request_id, output)

    def _add(self, primary: str, order: dict[str, Any]) -> dict[int, Sequence[float]]:
        """Takes up a group; returns its programs by slot."""
        cooling, helpers = order["cooling"], len(order["helpers"])
        rest = (tuple(order["guides"]), cooling is not None, order["grounded"], helpers)
        # A preempted one comes back under its old id: it keeps its slot.
        known = self._entries.get(primary)
        slot = self._take_slot() if known is None else known.slot
        self._entries[primary] = Entry(slot, *rest, order["vocab"])
        self._layout = []
        if order["output"]:
            self._handed[primary] = order["output"]
        programs = {2 * slot: order["row"]}
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
        found: list[tuple[str, Entry, int, list[int]]] = []
        for primary, entry in self._entries.items():
            rows = [row_of.get(request_id) for request_id in (primary, *entry.guides)]
            here = [row for row in rows if row is not None]
            # A grounding text that could not be read has left no vector.
            lost = entry.grounded and primary not in self.groundings.rows
            if len(here) == len(rows) and not lost:
                found.append((primary, entry, here[0], here[1:]))
        found.sort(key=lambda group: group[1].helpers > 0)
        with Contained("Planning a step"):
            return self._planned(found, row_of)
        found = [group for group in found if self._can_plan(group, row_of)]
        with Contained("Planning the rest of a step"):
            return self._planned(found, row_of)
        self.looks.lose()
        return None

    def _can_plan(
        self, group: tuple[str, Entry, int, list[int]], row_of: Mapping[str, int]
    ) -> bool:
        with Contained(f"Planning a step of request {group[0]}"):
            self._planned([group], row_of)
            return True
        return False

    def _planned(
        self, found: list[tuple[str, Entry, int, list[int]]], row_of: Mapping[str, int]
    ) -> Plan | None:
        look = self.looks.plan([(primary, row) for primary, _, row, _ in found], row_of)
        return self._pack(found, look) if found or look else None

    def guide(
        self, plan: Plan, logits: Tensor, helper_logits: HelperLogits, looks: Looks | None
    ) -> tuple[Tensor, Report] | None:
        """As `Plan.guide`; None if it fails: the scheduler then stops all requests of the plan."""
        with Contained("Guiding the logits of a step"):
            return plan.guide(logits, self.groundings.table, helper_logits, looks)
        self.looks.lose()
        return None

    def _pack(self, found: list[tuple[str, Entry, int, list[int]]], look: LookStep | None) -> Plan:
        """The plan of groups with all their rows: id, entry, primary's row, guides' rows."""
        alone = [group for group in found if group[1].helpers == 0]
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

    def _third(
        self, found: list[tuple[str, Entry, int, list[int]]]
    ) -> tuple[Tensor, Tensor] | None:
        """Who has a third stream: a grounding text's vector, or a second helper's logits."""
        pairs = [
            (place, row)
            for place, (_, entry, row, _) in enumerate(found)
            if entry.grounded or entry.helpers > 1
        ]
        return self._send(pairs) if pairs else None

    def _limits(
        self, found: list[tuple[str, Entry, int, list[int]]]
    ) -> tuple[tuple[Tensor, int], ...]:
        """The rows of requests that another engine with fewer token ids must be able to read."""
        limits: dict[int, list[int]] = {}
        for _, entry, row, _ in found:
            if entry.vocab is not None and entry.vocab < self._vocab:
                limits.setdefault(entry.vocab, []).append(row)
        device = self._programs.table.device
        return tuple((send(rows, torch.int64, device), vocab) for vocab, rows in limits.items())

    def _alone(self, found: list[tuple[str, Entry, int, list[int]]]) -> Rows:
        vectors = self.groundings.rows
        return Rows.pack(
            self._programs,
            [2 * entry.slot for _, entry, _, _ in found],
            [row for _, _, row, _ in found],
            [guides[0] if guides else ABSENT for *_, guides in found],
            [helper_row(vectors[p]) if e.grounded else ABSENT for p, e, _, _ in found],
        )

    def _aided(self, found: list[tuple[str, Entry, int, list[int]]]) -> Rows:
        """Their second streams are the first helper's logits, their third ones the second's."""
        count = len(found)
        return Rows.pack(
            self._programs,
            [2 * entry.slot for _, entry, _, _ in found],
            [row for _, _, row, _ in found],
            [helper_row(i) for i in range(count)],
            [
                helper_row(count + i) if entry.helpers > 1 else ABSENT
                for i, (_, entry, _, _) in enumerate(found)
            ],
        )

    def _cooling(self, found: list[tuple[str, Entry, int, list[int]]]) -> Rows:
        return Rows.pack(
            self._programs,
            [2 * entry.slot + 1 for _, entry, _, _ in found],
            [row for _, _, row, _ in found],
            [guides[-1] for *_, guides in found],
        )

    def _send(self, pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        ends = [[source for source, _ in pairs], [target for _, target in pairs]]
        sent = send(ends, torch.int64, self._programs.table.device)
        return sent[0], sent[1]
