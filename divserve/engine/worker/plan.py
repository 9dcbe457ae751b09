"""Worker side: what is done to the logits and tokens of one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from divserve.decoding import STATISTICS
from divserve.engine.models.hidden_store import Head, HiddenStore
from divserve.engine.worker.look_step import LookStep
from divserve.engine.worker.look_table import LookTable
from divserve.engine.worker.report import Looked, Report, Timer
from divserve_kernels import Streams, guide

__all__ = ["AmateurLogits", "Looks", "Plan"]

FACTOR = STATISTICS.index("factor")

Looks = tuple[LookTable, HiddenStore, Head]
"""What looking back needs beside the logits of the step."""

AmateurLogits = Callable[[Tensor], Tensor]
"""Rows of the batch ``[N] int64`` to their logits of all amateurs, ``[amateurs · N, V] float``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to the logits and tokens of one step."""

    primaries: tuple[str, ...]
    """Those of `rows`, then those of `aided`."""
    rows: Streams | None
    """Groups whose streams are rows of the batch or vectors of grounding texts."""
    aided: Streams | None
    """Groups whose streams are logits of amateur models."""
    aided_rows: Tensor
    """``[N] int64``: the batch rows of `aided`."""
    copies: tuple[Tensor, Tensor]
    """``[N] int64`` each: a row whose token is copied, and the guide's row that gets it."""
    cooling: Streams | None
    """The second programs, of the primaries in `cooled`."""
    cooled: tuple[int, ...]
    """Their places among `primaries`."""
    limited: tuple[tuple[Tensor, int], ...]
    """Rows ``[N] int64`` and the id from which on they sample no token."""
    look: LookStep | None
    """What looks back at earlier steps."""
    third: tuple[Tensor, Tensor] | None = None
    """``[N] int64`` each: places among `primaries` of those with a third stream, and their rows."""

    def guide(
        self,
        logits: Tensor,
        vectors: Tensor | None,
        amateur_logits: AmateurLogits,
        looks: Looks | None = None,
    ) -> tuple[Tensor, Report]:
        """Guides the primary rows of the raw logits ``[R, V]``.

        Args:
            logits: on the device; float32 ones are overwritten.
            vectors: ``[H, V] float32``: vectors of the grounding texts.
            amateur_logits: called with `aided_rows` if there are any.
            looks: needed where something looks back.

        Returns:
            The logits in float32 ``[R, V]`` and the statistics on their way to the host; the device
            is not waited for.
        """
        timer = Timer(logits.device)
        guided = logits.to(torch.float32)
        second = None if self.cooling is None else guide(logits, self.cooling, out=guided)
        found = []
        if self.rows is not None:
            found.append(guide(logits, self.rows, side=vectors, out=guided))
        if self.aided is not None:
            amateurs = amateur_logits(self.aided_rows)
            found.append(guide(logits, self.aided, side=amateurs, out=guided))
        if self.cooling is not None and second is not None:
            rows = self.cooling.primary
            factors = second[:, FACTOR, None]
            guided.index_copy_(0, rows, guided.index_select(0, rows) / factors)
            found.append(second)
        looked = None
        if self.look is not None and looks is not None:
            table, store, head = looks
            table.fill(store, head)
            looked = Looked(
                self.look.places, self.look.ks, self.look.run(logits, guided, store, table.kls)
            )
        for limited, vocab in self.limited:
            guided[:, vocab:].index_fill_(0, limited, -math.inf)
        statistics = found[0] if len(found) == 1 else torch.cat(found or [logits.new_zeros(0, 0)])
        if self.third is not None:
            # No statistic is of a third stream: that it is not numbers shows in what it made alone.
            places, rows = self.third
            zeros = guided.index_select(0, rows).amax(-1) * 0
            statistics[:, 0].index_add_(0, places, zeros)
        timer.stop()
        return guided, Report.start(self.primaries, statistics, self.cooled, looked, timer)

    def copy_tokens(self, sampled: Tensor) -> None:
        """Gives every guide row its primary's token; ``sampled`` ``[R, 1]`` changes in place."""
        source, target = self.copies
        if len(target):
            sampled.index_copy_(0, target, sampled.index_select(0, source))
