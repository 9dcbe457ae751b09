"""Decoding in simulated time: units whose drafts are accepted by chance, and steps with a price."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from divserve.engine.scheduler.governor import Governor, Proposal

__all__ = ["MOST", "Simulation"]

MOST = 5
"""Drafts that are proposed for each unit in every step."""
RIGHT, WRONG, SAMPLED = 1, 2, 3


@dataclass
class Simulation:
    """A batch of units that never end.

    Args:
        seconds: of a step, by its rows and its draft tokens.
        rows: of each unit.
        chances: how likely each draft of a unit is accepted after those before it.
        known: whether the scheduler sees the proposed tokens, as under synchronous scheduling.
        seed: of the chances.
    """

    seconds: Callable[[int, int], float]
    rows: Sequence[int]
    chances: list[float]
    known: bool = True
    seed: int = 0
    now: float = 100.0
    lengths: list[list[int]] = field(default_factory=list)
    """Of the drafts in each step, by unit."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.governor = Governor(clock=lambda: self.now)

    def run(self, steps: int, length: int | None = None) -> float:
        """Runs so many steps; returns the seconds per token.

        Args:
            steps: how many.
            length: of all drafts; None: the governor chooses.
        """
        start, tokens = self.now, 0
        for _ in range(steps):
            tokens += self._step(length)
        return (self.now - start) / tokens

    def _step(self, length: int | None) -> int:
        good = [self._accepted(chance) for chance in self.chances]
        ids = [[RIGHT] * n + [WRONG] * (MOST - n) if self.known else [-1] * MOST for n in good]
        proposals = [
            Proposal(str(i), rows, drafts)
            for i, (rows, drafts) in enumerate(zip(self.rows, ids, strict=True))
        ]
        total = sum(self.rows)
        if length is None:
            lengths = self.governor.choose(proposals, len(proposals), total)
        else:
            lengths = [length] * len(proposals)
        self.lengths.append(lengths)
        drafts = sum(n * rows for n, rows in zip(lengths, self.rows, strict=True))
        output = step_of(proposals, lengths, total)
        if length is None:
            self.governor.scheduled(output)
        self.now += self.seconds(total, drafts)
        taken = [min(n, m) for n, m in zip(good, lengths, strict=True)]
        sampled = [
            [RIGHT] * n + [RIGHT if n < m else SAMPLED] for n, m in zip(taken, good, strict=True)
        ]
        if length is None:
            self.governor.ran(output, made_of(proposals, sampled))
        return sum(map(len, sampled))

    def _accepted(self, chance: float) -> int:
        accepted = 0
        while accepted < MOST and self._random.random() < chance:
            accepted += 1
        return accepted


def step_of(proposals: Sequence[Proposal], lengths: Sequence[int], rows: int) -> Any:
    """What the governor reads of vLLM's ``SchedulerOutput``, for a step that only decodes."""
    scheduled = {
        f"{p.name}~{row}" if row else p.name: p.drafts[:length]
        for p, length in zip(proposals, lengths, strict=True)
        if length
        for row in range(p.rows)
    }
    return SimpleNamespace(
        scheduled_spec_decode_tokens=scheduled,
        total_num_scheduled_tokens=rows + sum(map(len, scheduled.values())),
        num_scheduled_tokens=dict.fromkeys(map(str, range(rows)), 1),
        scheduled_new_reqs=[],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set()),
    )


def made_of(proposals: Sequence[Proposal], sampled: list[list[int]]) -> Any:
    """What the governor reads of vLLM's ``ModelRunnerOutput``."""
    return SimpleNamespace(
        req_id_to_index={proposal.name: i for i, proposal in enumerate(proposals)},
        sampled_token_ids=sampled,
    )
