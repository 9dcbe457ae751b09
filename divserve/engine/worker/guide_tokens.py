"""Lock-step: guide rows take the tokens that their primary has sampled."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from divserve.engine.worker.sampled_rows import SampledRows
from divserve.engine.worker.slots import Groups
from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT

__all__ = ["GuideTokens"]

LEAST_SHARE = 1 / 4
"""Least share of guides among the rows of a step with which they are left out of sampling. With few
of them, copying the other rows costs what it saves (``bench.sampling --plain``)."""


class GuideTokens:
    """Copies tokens between rows; its only state is the layout."""

    def __init__(self) -> None:
        self.sampled_rows: SampledRows | None = None
        """All rows but the guides; None if these are none or few, or rows have draft tokens."""
        self._copies: Tensor | None = None
        """``[2, N] int64``: rows of primaries, and the rows that get their tokens."""

    def lay_out(self, groups: Groups, drafts: np.ndarray, staging: Staging) -> None:
        """Notes the rows of all groups of a step.

        Args:
            groups: by rows of the batch.
            drafts: ``[R] int64``: draft tokens of each row.
            staging: sends the arrays to the device.
        """
        self.sampled_rows, self._copies = None, None
        group, guide = np.nonzero(groups.rows[:, 1:] != ABSENT)
        if len(group):
            primaries, guides = groups.rows[group, 0], groups.rows[group, 1 + guide]
            # Rows of logits are as many as those of the batch only without drafts.
            if len(guides) >= LEAST_SHARE * len(drafts) and not drafts.any():
                self.sampled_rows = SampledRows.without(guides, primaries, len(drafts), staging)
            self._copies = staging.put(np.array((primaries, guides)))

    def apply(self, sampled: Tensor) -> None:
        """Copies the tokens in ``sampled`` ``[R, D + 1]``, in place."""
        if self._copies is not None:
            primaries, guides = self._copies
            sampled.index_copy_(0, guides, sampled.index_select(0, primaries))
