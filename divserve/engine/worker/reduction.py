"""What is kept of the distributions at the positions of a scored text: a few numbers of each.

It works on slices of positions, so that no tensor of all tokens and all of the vocabulary is ever
made.
"""

from __future__ import annotations

from torch import Tensor

from divserve_contract import EXCLUDED
from divserve_kernels import text_figures

__all__ = ["reduced", "slice_length"]

MOST_ENTRIES = 1 << 22
"""Logits of one slice of one stream: 16 MiB in float32, and a few times that in all."""
MOST_POSITIONS = 64


def slice_length(vocab: int) -> int:
    """Positions whose logits are in memory at a time."""
    return max(1, min(MOST_POSITIONS, MOST_ENTRIES // vocab))


def reduced(
    tokens: Tensor,
    ids: Tensor,
    top: int,
    chosen: Tensor,
    own: Tensor,
    guide: Tensor | None,
    reference: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is kept of a slice of S positions.

    Args:
        tokens: ``[S] int64``: the scored tokens.
        ids: ``[S, M] int64``: tokens whose log-probs are returned.
        top: how many of the likeliest tokens are returned.
        chosen, own, guide, reference: as in `divserve_kernels.text_figures.text_figures`.

    Returns:
        Figures ``[S, len(FIGURES)] float32``; ids ``[S, top] int32`` and log-probs ``[S, top]
        float32`` of the likeliest tokens; log-probs ``[S, M] float32`` of the chosen ids.
    """
    figures, lse = text_figures.text_figures(tokens, chosen, own, guide, reference)
    # A top-k of nothing would read the logits all the same.
    values, likeliest = chosen.topk(top, dim=-1) if top else (chosen[:, :0], ids[:, :0])
    asked = chosen.gather(1, ids)
    return figures, likeliest.int(), _log_probs(values, lse), _log_probs(asked, lse)


def _log_probs(logits: Tensor, lse: Tensor) -> Tensor:
    return (logits.float() - lse[:, None]).clamp_min_(EXCLUDED)
