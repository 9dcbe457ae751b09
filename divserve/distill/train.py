"""The training loop: rounds of sampling, each trained on for some passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from divserve.distill import losses, state, student
from divserve.distill.display import Display
from divserve.distill.evaluate import evaluate
from divserve.distill.sampling import Sequences, autocast, generator, hidden_states, sample
from divserve.distill.settings import Settings
from divserve.distill.state import Point, State
from divserve.distill.teacher import Teacher

__all__ = ["ROUND", "Stopped", "Trainer"]

ROUND = 8
"""Batches that are sampled at once: larger batches sample more tokens per second."""
POINTS = 12
"""Points of the curve after the first one; a checkpoint is written at each."""
_SAVE_S = 300.0
"""Maximum seconds between two checkpoints, plus the current step."""
_WARM_UP = 0.05
_LOWEST = 0.05
"""Share of the learning rate that is left at the end of the cosine."""
_CLIP = 1.0


class Stopped(Exception):
    """The user asked to stop."""


class Trainer:
    """One run, from any state: `run` finishes it, `save` writes its checkpoint."""

    def __init__(
        self, settings: Settings, teacher: Teacher, model: Any, now: State, known: dict[str, Any]
    ) -> None:
        self.settings, self.teacher, self.model, self.state = settings, teacher, model, now
        self.known = known
        """What the checkpoint says about the run; compared on resuming."""
        self.weights = student.trained(model)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01
        )
        self._started = time.monotonic() - now.seconds
        self._saved = time.monotonic()

    def restore(self, weights: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """Loads the contents of a checkpoint."""
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)

    def save(self) -> None:
        """Writes the checkpoint."""
        self._read_clock()
        state.save(
            self.settings.out, self.known, self.state, self.weights, self.optimizer.state_dict()
        )
        self._saved = time.monotonic()

    def fraction(self) -> float:
        """The share of the budget that is spent, 1 or more when the run is over."""
        settings, spent = self.settings, [0.0]
        if settings.tokens is not None:
            spent.append(self.state.tokens / settings.tokens)
        if settings.minutes is not None:
            spent.append((time.monotonic() - self._started) / (60 * settings.minutes))
        return max(spent)

    def run(self, display: Display, stop: Callable[[], bool]) -> None:
        """Trains until the budget is spent.

        Raises:
            Stopped: `stop` asked for it. The state is that after the last whole step and can be
                saved.
        """
        if not self.state.curve:
            self._measure(display)
        while (fraction := self.fraction()) < 1:
            if stop():
                raise Stopped
            if self.state.pending is None:
                self._sample(display, stop)
                continue
            self._step(self.state.pending, fraction)
            display.trained(min(self.fraction(), 1), self.state.tokens, self.state.losses[-1])
            if self.fraction() >= len(self.state.curve) / POINTS:
                self._measure(display)
            if time.monotonic() - self._saved > _SAVE_S:
                self.save()
        if self.state.losses:
            self._measure(display)
        self._read_clock()

    def _measure(self, display: Display) -> None:
        now = self.state
        loss = sum(now.losses) / len(now.losses) if now.losses else None
        figures = evaluate(self.model, now.held_out, self.settings.batch)
        self._read_clock()
        now.curve.append(Point(now.tokens, now.seconds, loss, figures))
        now.losses = []
        display.measured(now.curve[-1])
        self.save()

    def _sample(self, display: Display, stop: Callable[[], bool]) -> None:
        """Samples the sequences of the next round, some from the teacher, some from the student."""
        settings, now = self.settings, self.state
        random = generator(settings.seed, "round", now.rounds)
        count = ROUND * settings.batch
        chosen = torch.randint(len(now.prompts), (count,), generator=random).tolist()
        prompts = [now.prompts[index] for index in chosen]
        by_teacher = count - round(settings.on_policy * count)

        def tick() -> None:
            if stop():
                raise Stopped

        def draw(model: Any, prompts: list[list[int]]) -> Sequences:
            stops, heat = self.teacher.stops, settings.temperature
            return sample(model, prompts, settings.length, stops, random, heat, tick)

        parts = []
        if by_teacher:
            display.sampling("the teacher", self.fraction())
            parts.append(draw(self.teacher.model, prompts[:by_teacher]))
        if by_teacher < count:
            display.sampling("the student", self.fraction())
            parts.append(self._explained(draw(self.model, prompts[by_teacher:]), tick))
        now.pending = Sequences.joined(parts)
        now.fresh_tokens += int(now.pending.count.sum())
        now.rounds, now.cursor = now.rounds + 1, 0

    @torch.no_grad()
    def _explained(self, drawn: Sequences, tick: Callable[[], None]) -> Sequences:
        """`drawn` with the teacher's hidden states in place of the student's."""
        for rows in torch.arange(len(drawn), device=self.model.device).split(self.settings.batch):
            part = drawn.take(rows)
            row, offset = part.sampled()
            with autocast(self.model.device):
                states = hidden_states(self.teacher.model, part.tokens)
            drawn.teacher[rows[row], offset] = states[row, part.first[row] + offset].to(
                drawn.teacher.dtype
            )
            tick()
        return drawn

    def _step(self, pending: Sequences, fraction: float) -> None:
        """One update with the next batch of the pending round."""
        settings, now = self.settings, self.state
        turn, index = divmod(now.cursor, ROUND)
        order = generator(settings.seed, "order", now.rounds * settings.passes + turn)
        rows = torch.randperm(len(pending), generator=order)[index::ROUND].to(self.model.device)
        batch = pending.take(rows)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * _schedule(fraction)
        now.losses.append(self._gradients(batch))
        torch.nn.utils.clip_grad_norm_(self.weights.values(), _CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        now.tokens += int(batch.count.sum())
        now.step += 1
        now.cursor += 1
        if now.cursor == ROUND * settings.passes:
            now.pending = None

    def _gradients(self, batch: Sequences) -> float:
        """Adds the gradients of `batch` to those of the weights; returns the divergence, nats."""
        settings = self.settings
        row, offset = self._chosen(batch)
        wanted = batch.teacher[row, offset]
        with autocast(self.model.device):
            states = hidden_states(self.model, batch.tokens)[row, batch.first[row] + offset]
            loss, gradient = losses.head_loss(
                settings.loss, self.model.lm_head, wanted, states, settings.beta
            )
        if settings.hidden_weight:
            leaf = states.detach().float().requires_grad_()
            error = settings.hidden_weight * losses.hidden_error(wanted, leaf)
            gradient += torch.autograd.grad(error, leaf)[0]
        states.backward(gradient.to(states.dtype))
        return loss

    def _chosen(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """Row and offset of the sampled tokens whose loss is computed, both `[N] int64`."""
        row, offset = batch.sampled()
        if self.settings.positions == 1:
            return row, offset
        count = max(1, round(self.settings.positions * len(row)))
        random = generator(self.settings.seed, "positions", self.state.step)
        subset = torch.randperm(len(row), generator=random)[:count].to(row.device)
        return row[subset], offset[subset]

    def _read_clock(self) -> None:
        self.state.seconds = time.monotonic() - self._started


def _schedule(fraction: float) -> float:
    """The learning rate's factor: a linear warm-up, then a cosine."""
    if fraction < _WARM_UP:
        return max(fraction / _WARM_UP, _WARM_UP)
    cosine = (1 + math.cos(math.pi * (fraction - _WARM_UP) / (1 - _WARM_UP))) / 2
    return _LOWEST + (1 - _LOWEST) * cosine
