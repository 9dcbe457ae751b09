"""The stages of guidance, in the order in which they work on the logits of a step.

A group has a slot (`divserve.engine.worker.slots`). Each stage is one file. It keeps the state of a
group by slot, written once when the group is added (`add`); it notes the rows of the groups when
the layout of the batch has changed (`lay_out`); and it works on the device (`apply`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from divserve.engine.order import GroupOrder
from divserve.engine.worker.amateurs import AmateurContrast
from divserve.engine.worker.contrast import Contrast
from divserve.engine.worker.dropped import DroppedTokens
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.guide_tokens import GuideTokens
from divserve.engine.worker.look_back import LookBack
from divserve.engine.worker.lookup import Lookup
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.reader import Reader
from divserve.engine.worker.report import PendingGuidance, Timer
from divserve.engine.worker.slots import Groups, Located
from divserve.engine.worker.staging import Staging
from divserve.engine.worker.temperature import OwnTemperature
from divserve.engine.worker.third_streams import ThirdStreamCheck
from divserve.engine.worker.top_tokens import TopStep, TopTokens
from divserve.engine.worker.vocabulary import VocabularyCap

__all__ = ["Pipeline"]


class Pipeline:
    """All stages, and the layout that they have been given."""

    def __init__(self, vocab: int, device: torch.device, ranks: Ranks) -> None:
        self._device, self._ranks = device, ranks
        self.programs = GroupPrograms(device)
        self.groundings = Groundings(vocab, device)
        self.reader = Reader(vocab, device, self.programs)
        self._temperature = OwnTemperature(self.programs)
        self._contrast = Contrast(self.programs, self.groundings)
        self._amateurs = AmateurContrast(self.programs)
        self.look_back = LookBack(device)
        self._dropped = DroppedTokens()
        self._vocabulary = VocabularyCap(vocab)
        self._third_streams = ThirdStreamCheck()
        self._top_tokens = TopTokens()
        self.guide_tokens = GuideTokens()
        self.lookup = Lookup()
        self.names: tuple[str, ...] = ()
        """Primary request ids of the layout, once for each row of its statistics."""
        self.active = False
        """Whether anything is to be done in a step of this layout."""
        self.top_step: TopStep | None = None
        """What a trace shows of the streams of the last step, if a request asks for it."""
        self._guided_steps = 0

    def add(self, slot: int, order: GroupOrder, new: Any) -> None:
        """Writes the state of a slot in every stage that keeps one.

        Args:
            slot: of the group.
            order: on the group.
            new: vLLM's ``NewRequestData`` of its primary.
        """
        for stage in (
            self.programs,
            self.groundings,
            self._temperature,
            self._amateurs,
            self._vocabulary,
            self._third_streams,
            self._top_tokens,
        ):
            stage.add(slot, order)
        self._dropped.add(slot, order, new.sampling_params)
        prompt = len(new.prompt_token_ids)
        known = len(new.prefill_token_ids or new.prompt_token_ids)
        self.look_back.add(slot, order.look, prompt, known)
        self.reader.add(slot, order, new)
        self.lookup.add(slot, order, prompt)

    def lay_out(self, groups: Groups, located: Located) -> Groups:
        """Gives the stages their rows; returns the groups without those that lack a text."""
        groups = self.reader.legible(self.groundings.legible(groups))
        staging, among = Staging(self._device), self._amateurs.among(groups)
        alone, compared = groups.select(~among), groups.select(among)
        # Ranks compute the logits of amateurs together, but their slots may differ after a fault.
        compared = compared.select(compared.rows[:, 0].argsort())
        # In the order of their statistics: groups with amateurs come after the others.
        groups = Groups.joined(alone, compared)
        looks = self.look_back.lay_out(groups, located, staging)
        self.guide_tokens.lay_out(groups, located.drafts, staging)
        self.lookup.lay_out(groups, located)
        alone, compared = alone.positions(located.drafts), compared.positions(located.drafts)
        positions = Groups.joined(alone, compared)
        self._temperature.lay_out(positions, staging)
        self._contrast.lay_out(alone, staging)
        self._amateurs.lay_out(compared, staging)
        self._dropped.lay_out(positions, staging)
        self._vocabulary.lay_out(positions, staging)
        self._third_streams.lay_out(positions, staging)
        self._top_tokens.lay_out(positions, len(alone), staging)
        staging.send()
        self.names = tuple(positions.names.tolist())
        self.active = len(groups) > 0 or looks
        return groups

    def apply(self, logits: Tensor, forward: Forward) -> tuple[Tensor, PendingGuidance]:
        """Guides the primaries' rows of the raw logits ``[N, V]``; float32 ones are overwritten.

        Returns:
            The logits in float32, and the report.
        """
        timer = Timer.for_step(self._device, self._guided_steps)
        self._guided_steps += 1
        # First, because all ranks must take part in it, and what follows may fail on one of them.
        with self._ranks.together():
            read = self._amateurs.read(forward.model, forward.hidden_states)
        self.top_step = self._top_tokens.begin(logits, read)
        raw = self._dropped.raw(logits)
        guided = logits.to(torch.float32)
        measured = self._temperature.measure(logits, guided)
        found = self._contrast.apply(logits, guided)
        found += self._amateurs.apply(logits, guided, read)
        self._temperature.apply(guided, measured)
        found += measured
        comparisons = self.look_back.apply(logits, guided, forward.model, forward.head)
        self._dropped.apply(guided, raw)
        self._vocabulary.apply(guided)
        statistics = found[0] if len(found) == 1 else torch.cat(found or [logits.new_zeros(0, 0)])
        self._third_streams.apply(guided, statistics)
        if timer is not None:
            timer.stop()
        return guided, PendingGuidance(
            self.names,
            statistics,
            self._temperature.places,
            comparisons,
            timer,
            top=self.top_step,
            reads=self.reader.found(self.names),
        )
