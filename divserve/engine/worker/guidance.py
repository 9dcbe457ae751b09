"""What is done to the logits and tokens of a step, stage by stage.

A group has a slot (`divserve.engine.worker.slots`). Each stage is one file. It keeps the state of a
group by slot, written once when the group is added (`add`); it notes the rows of the groups when
the layout of the batch has changed (`lay_out`); and it works on the device (`apply`). A step with
the same layout as the step before costs two comparisons and the stages' work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.v1.core.sched.output import SchedulerOutput

from divserve.engine.faults import log_fault, logger
from divserve.engine.models.hidden_store import Head
from divserve.engine.order import GroupOrder, ProbeOrder, TextOrder, chosen_of, row_order_of
from divserve.engine.worker.amateurs import AmateurContrast
from divserve.engine.worker.contrast import Contrast
from divserve.engine.worker.dropped import DroppedTokens
from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.guide_tokens import GuideTokens
from divserve.engine.worker.look_back import LookBack, Temperatures
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.report import PendingGuidance, Timer
from divserve.engine.worker.slots import Groups, Located, Slots
from divserve.engine.worker.staging import Staging
from divserve.engine.worker.temperature import OwnTemperature
from divserve.engine.worker.third_streams import ThirdStreamCheck
from divserve.engine.worker.vocabulary import VocabularyCap

__all__ = ["Forward", "GuidanceStages"]


@dataclass(frozen=True, slots=True)
class Forward:
    """What the stages need from a forward pass."""

    model: nn.Module
    head: Head
    """The model's ``compute_logits``."""
    hidden_states: Tensor
    """``[R, sum of the hidden sizes]`` of the rows' last tokens."""


class GuidanceStages:
    """All stages, and the layout that they have been given."""

    def __init__(self, vocab: int, device: torch.device, ranks: Ranks) -> None:
        self.device = device
        self._ranks = ranks
        self._known: set[str] = set()
        """Requests with an order, whether or not they could be taken up: the same on all ranks."""
        self._slots = Slots()
        self._programs = GroupPrograms(device)
        self._groundings = Groundings(vocab, device)
        self._temperature = OwnTemperature(self._programs)
        self._contrast = Contrast(self._programs, self._groundings)
        self._amateurs = AmateurContrast(self._programs)
        self._look_back = LookBack(device)
        self._dropped = DroppedTokens()
        self._vocabulary = VocabularyCap(vocab)
        self._third_streams = ThirdStreamCheck()
        self._guide_tokens = GuideTokens()
        self._handed: dict[str, list[int]] = {}
        self._stale = True
        """Whether to make the layout again even if the rows have not changed."""
        self._req_ids: list[str] = []
        self._sampling = b""
        """The argument `samples` of `place`, as bytes."""
        self._names: tuple[str, ...] = ()
        """Primary request ids of the layout, in the order of their statistics."""
        self._active = False
        self._guided_steps = 0

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
                self._drop(order.primary if isinstance(order, TextOrder) else new.req_id)
            else:
                if isinstance(order, GroupOrder):
                    taken.append(new.req_id)
        try:
            self._programs.send()
        except Exception as error:
            log_fault("Sending programs", error)
            for request_id in taken:
                self._drop(request_id)

    def _take_up(self, new: Any, order: GroupOrder | TextOrder | ProbeOrder) -> None:
        if isinstance(order, TextOrder):
            self._groundings.add_text(new.req_id, order)
        elif isinstance(order, ProbeOrder):
            slot = self._slots.add_probe(new.req_id, order.primary, order.index)
            self._look_back.add_probe(slot, order)
        else:
            slot = self._slots.take(new.req_id, order.guides)
            self._add(slot, order, new)
            if order.output:
                self._handed[new.req_id] = list(order.output)

    def _add(self, slot: int, order: GroupOrder, new: Any) -> None:
        """Writes the state of a slot in every stage that keeps one."""
        for stage in (
            self._programs,
            self._groundings,
            self._temperature,
            self._amateurs,
            self._vocabulary,
            self._third_streams,
        ):
            stage.add(slot, order)
        self._dropped.add(slot, order, new.sampling_params)
        prompt = len(new.prompt_token_ids)
        known = len(new.prefill_token_ids or new.prompt_token_ids)
        self._look_back.add(slot, order.look, prompt, known)

    def _drop(self, request_id: str) -> None:
        """A request has ended or could not be added."""
        self._groundings.end(request_id)
        if (slot := self._slots.release(request_id)) is not None:
            self._look_back.release(slot)

    def _resume(self, scheduler_output: SchedulerOutput) -> None:
        """Handles requests that resume: preempted ones, and those that waited for their probes."""
        chosen = map(self._slots.find, chosen_of(scheduler_output))
        if self._look_back.choose([slot for slot in chosen if slot is not None]):
            self._stale = True
        cached = scheduler_output.scheduled_cached_reqs
        if not cached.resumed_req_ids:
            return
        self._groundings.restart(cached.resumed_req_ids)
        for request_id, output in zip(cached.req_ids, cached.num_output_tokens, strict=True):
            slot = self._slots.find(request_id) if request_id in cached.resumed_req_ids else None
            if slot is not None and self._look_back.resume(slot, output):
                self._stale = True

    def handed_over(self) -> dict[str, list[int]]:
        """Output tokens from another engine, by id, of the requests that are new in this step."""
        return self._handed

    # Where the groups are in the batch.

    def place(self, req_ids: list[str], samples: np.ndarray) -> bool:
        """Finds the groups in the batch; returns whether anything is to be done in this step.

        Args:
            req_ids: request id of each row.
            samples: ``[R] bool``: which rows take a token in this step. A group with a row that
                does not is left out; the scheduler then stops its request.
        """
        sampling = samples.tobytes()
        if self._stale or req_ids != self._req_ids or sampling != self._sampling:
            self._stale, self._req_ids, self._sampling = False, list(req_ids), sampling
            located = self._slots.locate(req_ids, samples)
            groups = self._laid_out(located)
            if self._ranks.several:
                self._agree(groups, located, len(req_ids))
        return self._active

    def _laid_out(self, located: Located) -> Groups:
        """Lays out all groups; if that fails, those that can be laid out one by one."""
        groups = located.groups
        try:
            return self._lay_out(groups, located)
        except Exception as error:
            log_fault("Laying out a step", error)
        each = [groups.select(np.array([place])) for place in range(len(groups))]
        well = np.array([self._can_lay_out(group, located) for group in each], np.bool_)
        try:
            return self._lay_out(groups.select(well), located)
        except Exception as error:
            log_fault("Laying out the rest of a step", error)
            self._look_back.lose()
            self._active = False
            return groups.select(np.zeros(len(groups), np.bool_))

    def _agree(self, own: Groups, located: Located, rows: int) -> None:
        """Lays out only the groups that all ranks have laid out."""
        well = np.zeros(rows, np.bool_)
        well[own.rows[:, 0]] = True
        agreed = self._ranks.agreed(well)
        if not np.array_equal(agreed, well):
            logger.error("Another rank cannot lay out a step: the requests concerned end")
            with self._ranks.together():
                self._lay_out(own.select(agreed[own.rows[:, 0]]), located)

    def _can_lay_out(self, group: Groups, located: Located) -> bool:
        try:
            self._lay_out(group, located)
        except Exception as error:
            log_fault(f"Laying out a step of request {group.names[0]}", error)
            return False
        return True

    def _lay_out(self, groups: Groups, located: Located) -> Groups:
        """Gives the stages their rows; returns the groups without those that lack a text."""
        groups = self._groundings.legible(groups)
        staging, among = Staging(self.device), self._amateurs.among(groups)
        alone, compared = groups.select(~among), groups.select(among)
        # Ranks compute the logits of amateurs together, but their slots may differ after a fault.
        compared = compared.select(compared.rows[:, 0].argsort())
        # In the order of their statistics: groups with amateurs come after the others.
        groups = Groups.joined(alone, compared)
        self._temperature.lay_out(groups, staging)
        self._contrast.lay_out(alone, staging)
        self._amateurs.lay_out(compared, staging)
        looks = self._look_back.lay_out(groups, located, staging)
        self._dropped.lay_out(groups, staging)
        self._vocabulary.lay_out(groups, staging)
        self._third_streams.lay_out(groups, staging)
        self._guide_tokens.lay_out(groups, staging)
        staging.send()
        self._names = tuple(groups.names.tolist())
        self._active = len(groups) > 0 or looks
        return groups

    # The work of a step.

    def read_texts(
        self,
        req_ids: list[str],
        starts: np.ndarray,
        hidden_states: Tensor,
        compute_logits: Callable[[Tensor], Tensor],
    ) -> None:
        """Calls `Groundings.read`."""
        self._groundings.read(req_ids, starts, hidden_states, compute_logits, self._ranks)

    @property
    def temperatures(self) -> Temperatures | None:
        """Temperatures of the layout's rows that are not sampled at their request's own."""
        return self._look_back.temperatures

    def guide(self, logits: Tensor, forward: Forward) -> tuple[Tensor, PendingGuidance] | None:
        """Guides the primaries' rows of the raw logits ``[R, V]``; float32 ones are overwritten.

        Returns:
            The logits in float32, and the report, which is being copied to the host without waiting
            for the device. None on failure: the scheduler then stops all requests of the layout.
        """
        found = None
        try:
            found = self._guided(logits, forward)
        except Exception as error:
            log_fault("Guiding the logits of a step", error)
            self._look_back.lose()
        failures = self._ranks.failures(found is None, self.device)
        if found is None:
            return None
        guided, pending = found
        return guided, replace(pending, failures=failures).copied()

    def _guided(self, logits: Tensor, forward: Forward) -> tuple[Tensor, PendingGuidance]:
        timer = Timer.for_step(self.device, self._guided_steps)
        self._guided_steps += 1
        # First, because all ranks must take part in it, and what follows may fail on one of them.
        with self._ranks.together():
            read = self._amateurs.read(forward.model, forward.hidden_states)
        raw = self._dropped.raw(logits)
        guided = logits.to(torch.float32)
        measured = self._temperature.measure(logits, guided)
        found = self._contrast.apply(logits, guided)
        found += self._amateurs.apply(logits, guided, read)
        self._temperature.apply(guided, measured)
        found += measured
        comparisons = self._look_back.apply(logits, guided, forward.model, forward.head)
        self._dropped.apply(guided, raw)
        self._vocabulary.apply(guided)
        statistics = found[0] if len(found) == 1 else torch.cat(found or [logits.new_zeros(0, 0)])
        self._third_streams.apply(guided, statistics)
        if timer is not None:
            timer.stop()
        return guided, PendingGuidance(
            self._names, statistics, self._temperature.places, comparisons, timer
        )

    def copy_tokens(self, sampled: Tensor) -> None:
        """Gives every guide row its primary's token, in place in ``sampled`` ``[R, 1]``."""
        self._guide_tokens.apply(sampled)
