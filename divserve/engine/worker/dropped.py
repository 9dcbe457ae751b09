"""Dropped tokens of requests that also forbid tokens: far below the kept ones instead of −inf.

A method drops tokens before the grammar, ``allowed_token_ids``, ``bad_words`` and ``min_tokens``
forbid others. If these forbid every kept token, the dropped ones must still be there to choose
from.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from divserve.engine.order import GroupOrder
from divserve.engine.worker.slots import SLOTS, Groups, grown
from divserve.engine.worker.staging import Staging

__all__ = ["PENALTY", "DroppedTokens", "forbids_tokens"]

PENALTY = 1e4
"""Distance between the last kept and the first dropped token, in the units of logits.

A probability of exp(−104) is 0 in float32, so no dropped token is drawn beside a kept one at
temperatures up to 96, nor brought back by a bias of 100. vLLM reports log-probs below −9999 as
−9999, and so those of dropped tokens as it reports −inf. Larger values would round the ranking of
the dropped tokens, which is exact to 0.001 nat here.
"""


def forbids_tokens(params: Any) -> bool:
    """Whether vLLM's sampling parameters can give tokens a logit of −inf."""
    grammar, allowed = params.structured_outputs, params.allowed_token_ids
    return bool(grammar or allowed or params.bad_words or params.min_tokens)


class DroppedTokens:
    """The rows of the groups whose method drops tokens, and whose request forbids tokens.

    Kept tokens are not changed. Dropped ones follow in the order of the primary's raw logits, so
    that a request whose grammar allows no kept token decodes as without its method. Tokens whose
    raw logit is −inf stay so.
    """

    def __init__(self) -> None:
        self._both = np.zeros(SLOTS, np.bool_)
        """``[capacity] bool`` by slot: whether the group drops and forbids tokens."""
        self._rows: Tensor | None = None
        """``[N] int64``: rows of the layout."""

    def add(self, slot: int, order: GroupOrder, params: Any) -> None:
        """Writes the state of a slot; ``params`` are vLLM's sampling parameters."""
        self._both = grown(self._both, slot)
        self._both[slot] = order.program.drops_tokens() and forbids_tokens(params)

    def lay_out(self, groups: Groups, staging: Staging) -> None:
        """Notes the rows of all groups of the step."""
        rows = groups.rows[self._both[groups.slots], 0]
        self._rows = staging.put(rows) if len(rows) else None

    def raw(self, logits: Tensor) -> Tensor | None:
        """Copies the raw logits of its rows ``[N, V] float32``, before they are overwritten."""
        return None if self._rows is None else logits.index_select(0, self._rows).float()

    def apply(self, guided: Tensor, raw: Tensor | None) -> None:
        """Gives the dropped tokens of its rows a finite logit, in place.

        Args:
            guided: ``[R, V] float32``.
            raw: as returned by `raw`.
        """
        if self._rows is None or raw is None:
            return
        rows = guided.index_select(0, self._rows)
        dropped = rows == -math.inf
        least = rows.masked_fill(dropped, math.inf).amin(-1, keepdim=True)
        # Not finite where a row has no token at all, or NaN: the raw logits already say so.
        shift = (least - PENALTY - raw.amax(-1, keepdim=True)).nan_to_num_(0.0, 0.0, 0.0)
        guided.index_copy_(0, self._rows, raw.add_(shift).where(dropped, rows))
