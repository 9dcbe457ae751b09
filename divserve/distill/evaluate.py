"""How far the student is from the teacher on text that it has never seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from divserve.distill.losses import chunk_size, divergence
from divserve.distill.sampling import Sequences, autocast, hidden_states

__all__ = ["Figures", "evaluate"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the sampled tokens of held-out sequences; p is the teacher, q the student."""

    kl: float
    """KL(p‖q), nats per token."""
    acceptance: float
    """Σ min(p, q): the chance that speculative sampling accepts a draft of the student."""
    agreement: float
    """Share of positions where both have the same likeliest token."""


@torch.no_grad()
def evaluate(student: Any, held_out: Sequences, batch: int = 8) -> Figures:
    """Returns the figures of `student` on `held_out`, whose tensors are on its device."""
    kl = acceptance = agreement = 0.0
    chunk = chunk_size(student.device)
    for rows in torch.arange(len(held_out), device=student.device).split(batch):
        part = held_out.take(rows)
        row, offset = part.sampled()
        with autocast(student.device):
            states = hidden_states(student, part.tokens)[row, part.first[row] + offset]
            wanted = part.teacher[row, offset]
            for start in range(0, len(row), chunk):
                teacher = student.lm_head(wanted[start : start + chunk]).float()
                own = student.lm_head(states[start : start + chunk]).float()
                kl += divergence("forward_kl", teacher, own).sum().item()
                acceptance += (1 - divergence("tv", teacher, own)).sum().item()
                agreement += (teacher.argmax(-1) == own.argmax(-1)).sum().item()
    total = int(held_out.count.sum())
    return Figures(kl / total, acceptance / total, agreement / total)
