"""Keeps the amateurs' weights where vLLM discards all weights: sleep mode at level 2.

vLLM expects that the served model's weights are loaded again after it. It does not know of the
amateurs, whose memory it discards as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from divserve.engine.models.loader import amateur_tensors

__all__ = ["AmateursAsleep"]

DISCARDS = 2
"""The level of sleep from which weights are discarded, not moved to the host."""


class AmateursAsleep:
    """The amateurs' tensors on the host while the engine sleeps."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        """Tensors of the amateurs, and their copies on the host."""

    def sleep(self, model: nn.Module, level: int) -> None:
        """Call before vLLM's ``sleep``; copies the tensors if that level discards them."""
        # A second call while asleep would copy memory that is gone.
        if level >= DISCARDS and not self._kept:
            self._kept = [(x, x.detach().to("cpu", copy=True)) for x in amateur_tensors(model)]

    def wake_up(self, tags: Sequence[str] | None) -> None:
        """Call after vLLM's ``wake_up``; ``tags`` say what has woken up, None: everything."""
        if tags is None or "weights" in tags:
            with torch.no_grad():
                for tensor, copy in self._kept:
                    tensor.copy_(copy)
            self._kept = []
