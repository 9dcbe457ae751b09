"""What the runners call in a step: observe, place, read texts, guide, copy tokens.

A fault of one group is contained here: its request is left out, and the scheduler ends it. A step
with the same layout as the step before costs two comparisons and the work of the stages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.core.sched.output import SchedulerOutput

from divserve.engine.faults import log_fault, logger
from divserve.engine.order import (
    GroupOrder,
    ProbeOrder,
    ReadOrder,
    RowOrder,
    TextOrder,
    chosen_of,
    row_order_of,
)
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.look_back import Temperatures
from divserve.engine.worker.lookup import Lookup
from divserve.engine.worker.pipeline import Pipeline
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.report import PendingGuidance
from divserve.engine.worker.sampled_rows import SampledRows
from divserve.engine.worker.slots import Groups, Located, Slots

__all__ = ["GuidanceStages"]


class GuidanceStages:
    """The groups of a worker, taken up and placed in the batch of every step."""

    def __init__(self, vocab: int, device: torch.device, ranks: Ranks) -> None:
        self.device = device
        self._ranks = ranks
        self._known: set[str] = set()
        """Requests with an order, whether or not they could be taken up: the same on all ranks."""
        self._slots = Slots()
        self._pipeline = Pipeline(vocab, device, ranks)
        self._handed: dict[str, list[int]] = {}
        self._stale = True
        """Whether to make the layout again even if the rows have not changed."""
        self._req_ids: list[str] = []
        self._sampling = b""
        """The arguments `samples` and `drafts` of `place`, as bytes."""

    def __len__(self) -> int:
        """Requests with an order."""
        return len(self._known)

    # What the scheduler says of a step.

    def observe(self, scheduler_output: SchedulerOutput) -> None:
        """Adds new groups and drops finished ones. Call once per step, before `place`."""
        for request_id in scheduler_output.finished_req_ids:
            if request_id in self._known:
                self._known.discard(request_id)
                self._stale = True
                self._drop(request_id)
        self._resume(scheduler_output)
        self._handed = {}
        taken = []
        for new in scheduler_output.scheduled_new_reqs:
            order = row_order_of(new.sampling_params)
            if order is None:
                continue
            self._known.add(new.req_id)
            self._stale = True
            try:
                self._take_up(new, order)
            except Exception as error:
                log_fault(f"Taking up request {new.req_id}", error)
                # A text is still read: other ranks read it too.
                self._drop(
                    order.primary if isinstance(order, TextOrder | ReadOrder) else new.req_id
                )
            else:
                if isinstance(order, GroupOrder):
                    taken.append(new.req_id)
        self._pipeline.reader.observe(scheduler_output)
        try:
            self._pipeline.programs.send()
        except Exception as error:
            log_fault("Sending programs", error)
            for request_id in taken:
                self._drop(request_id)

    def _take_up(self, new: Any, order: RowOrder) -> None:
        if isinstance(order, TextOrder):
            self._pipeline.groundings.add_text(new.req_id, order)
        elif isinstance(order, ReadOrder):
            self._pipeline.reader.add_guide(order, new)
        elif isinstance(order, ProbeOrder):
            slot = self._slots.add_probe(new.req_id, order.primary, order.index)
            self._pipeline.look_back.add_probe(slot, order)
        else:
            slot = self._slots.take(new.req_id, order.guides)
            self._pipeline.add(slot, order, new)
            if order.output:
                self._handed[new.req_id] = list(order.output)

    def _drop(self, request_id: str) -> None:
        """A request has ended or could not be added."""
        self._pipeline.groundings.end(request_id)
        self._pipeline.reader.end(request_id)
        if (slot := self._slots.release(request_id)) is not None:
            self._pipeline.look_back.release(slot)

    def _resume(self, scheduler_output: SchedulerOutput) -> None:
        """Handles requests that resume: preempted ones, and those that waited for their probes."""
        chosen = map(self._slots.find, chosen_of(scheduler_output))
        if self._pipeline.look_back.choose([slot for slot in chosen if slot is not None]):
            self._stale = True
        cached = scheduler_output.scheduled_cached_reqs
        if not cached.resumed_req_ids:
            return
        self._pipeline.groundings.restart(cached.resumed_req_ids)
        for request_id, output in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            slot = self._slots.find(request_id) if request_id in cached.resumed_req_ids else None
            if slot is not None and self._pipeline.look_back.resume(slot, output):
                self._stale = True

    def handed_over(self) -> dict[str, list[int]]:
        """Output tokens from another engine, by id, of the requests that are new in this step."""
        return self._handed

    def primary_of(self, request_id: str) -> str | None:
        """The primary of a guide; None for every other request."""
        return self._slots.primary_of(request_id)

    # Where the groups are in the batch.

    def place(
        self, req_ids: list[str], samples: np.ndarray, drafts: np.ndarray | None = None
    ) -> bool:
        """Finds the groups in the batch; returns whether anything is to be done in this step.

        Args:
            req_ids: request id of each row.
            samples: ``[R] bool``: which rows take a token in this step. A group with a row that
                does not is left out; the scheduler then stops its request.
            drafts: ``[R] int64``: draft tokens of each row; None if no row has any. A row has one
                row of logits more than it has draft tokens.
        """
        if drafts is None:
            drafts = np.zeros(len(req_ids), np.int64)
        sampling = samples.tobytes() + drafts.tobytes()
        if self._stale or req_ids != self._req_ids or sampling != self._sampling:
            self._stale, self._req_ids, self._sampling = False, list(req_ids), sampling
            located = self._slots.locate(req_ids, samples, drafts)
            groups = self._laid_out(located)
            if self._ranks.several:
                self._agree(groups, located)
        return self._pipeline.active

    def _laid_out(self, located: Located) -> Groups:
        """Lays out all groups; if that fails, those that can be laid out one by one."""
        groups = located.groups
        try:
            return self._pipeline.lay_out(groups, located)
        except Exception as error:
            log_fault("Laying out a step", error)
        each = [groups.select(np.array([place])) for place in range(len(groups))]
        well = np.array([self._can_lay_out(group, located) for group in each], np.bool_)
        try:
            return self._pipeline.lay_out(groups.select(well), located)
        except Exception as error:
            log_fault("Laying out the rest of a step", error)
            self._pipeline.look_back.lose()
            self._pipeline.active = False
            return groups.select(np.zeros(len(groups), np.bool_))

    def _agree(self, own: Groups, located: Located) -> None:
        """Lays out only the groups that all ranks have laid out."""
        well = np.zeros(len(located.drafts), np.bool_)
        well[own.rows[:, 0]] = True
        agreed = self._ranks.agreed(well)
        if not np.array_equal(agreed, well):
            logger.error("Another rank cannot lay out a step: the requests concerned end")
            with self._ranks.together():
                self._pipeline.lay_out(own.select(agreed[own.rows[:, 0]]), located)

    def _can_lay_out(self, group: Groups, located: Located) -> bool:
        try:
            self._pipeline.lay_out(group, located)
        except Exception as error:
            log_fault(f"Laying out a step of request {group.names[0]}", error)
            return False
        return True

    # The work of a step.

    def read_texts(self, req_ids: list[str], starts: np.ndarray, forward: Forward) -> None:
        """Calls `Groundings.read` and `Reader.read`."""
        self._pipeline.groundings.read(req_ids, starts, forward, self._ranks)
        self._pipeline.reader.read(req_ids, starts, forward, self._ranks)

    @property
    def temperatures(self) -> Temperatures | None:
        """Temperatures of the layout's rows that are not sampled at their request's own."""
        return self._pipeline.look_back.temperatures

    @property
    def sampled_rows(self) -> SampledRows | None:
        """The layout's rows without guides; None if these are none or few."""
        return self._pipeline.guide_tokens.sampled_rows

    @property
    def lookup(self) -> Lookup:
        """Drafts for the layout's primaries."""
        return self._pipeline.lookup

    def guide(self, logits: Tensor, forward: Forward) -> tuple[Tensor, PendingGuidance] | None:
        """Guides the primaries' rows of the raw logits ``[N, V]``; float32 ones are overwritten.

        Returns:
            The logits in float32, and the report. None on failure: the scheduler then stops all
            requests of the layout.
        """
        found = None
        try:
            found = self._pipeline.apply(logits, forward)
        except Exception as error:
            log_fault("Guiding the logits of a step", error)
            self._pipeline.look_back.lose()
        failures = self._ranks.failures(found is None, self.device)
        if found is None:
            return None
        guided, pending = found
        return guided, replace(pending, failures=failures)

    def sampled_from(self, logits: Tensor) -> None:
        """Tells of the logits ``[N, V]`` that vLLM samples from, before its penalties and bias."""
        if (top := self._pipeline.top_step) is not None:
            try:
                top.add_guided(logits)
            except Exception as error:
                # The report is incomplete: the scheduler stops all requests of the layout.
                log_fault("Reading the likeliest tokens of a step", error)

    def copy_tokens(self, sampled: Tensor) -> None:
        """Gives every guide row its primary's tokens, in place in ``sampled`` ``[R, D + 1]``."""
        self._pipeline.guide_tokens.apply(sampled)
