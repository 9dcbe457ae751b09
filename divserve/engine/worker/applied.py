"""A method applied to positions of a given text, as it would be when these are sampled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from divserve.decoding import STATISTICS
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.staging import Staging
from divserve.engine.worker.texts import Kind
from divserve_kernels import ABSENT, guide, side_row

__all__ = ["Applied"]

FACTOR = STATISTICS.index("factor")


class Applied:
    """Applies the programs of groups to slices of positions."""

    def __init__(self, device: torch.device, programs: GroupPrograms) -> None:
        self._device, self._programs = device, programs

    def logits(
        self, kind: Kind, slots: np.ndarray, streams: list[Tensor], side: Tensor | None
    ) -> Tensor:
        """Guided logits ``[S, V] float32``, before the request's own temperature.

        Args:
            kind: of the texts.
            slots: ``[S] int64``: the group of each position.
            streams: ``[S, V]`` raw logits of the primary, then of each guide.
            side: ``[amateurs · S, V']`` raw logits of the amateurs, one after another.
        """
        count = len(slots)
        logits, primary = torch.cat([stream.float() for stream in streams]), np.arange(count)
        none = np.full(count, ABSENT)
        staging = Staging(self._device)
        second = third = none
        if kind.amateurs:
            second = side_row(0) - primary
            third = second - count if kind.amateurs > 1 else none
        elif kind.rows > 1:
            second = primary + count
        first = self._programs.streams(2 * slots, primary, second, third, staging)
        staging.send()
        factors = self._factors(kind, slots, logits) if kind.second else None
        guide(logits, first, side=side)
        guided = logits[:count]
        return guided if factors is None else guided / factors

    def _factors(self, kind: Kind, slots: np.ndarray, logits: Tensor) -> Tensor:
        """What the second programs divide the logits by, ``[S, 1]``; their guide is the last."""
        staging, primary = Staging(self._device), np.arange(len(slots))
        own, none = primary + (kind.rows - 1) * len(slots), np.full(len(slots), ABSENT)
        streams = self._programs.streams(2 * slots + 1, primary, own, none, staging)
        staging.send()
        return guide(logits, streams)[:, FACTOR, None]
