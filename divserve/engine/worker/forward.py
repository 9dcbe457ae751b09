"""What the stages need from a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from divserve.engine.models.hidden_store import Head

__all__ = ["Forward"]


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass that has run."""

    model: nn.Module
    head: Head
    """The model's ``compute_logits``."""
    hidden_states: Tensor
    """``[N, sum of the hidden sizes]``: of all tokens of the step, or at the positions of the
    logits."""
