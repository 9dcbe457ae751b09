"""The one operation of the step path: guide the primaries' logits by their second streams.

    z1, z2 = logits[primary], logits[guide]            raw float32 logits of one engine step
    w      = max(alpha + jsd_scale · JSD(p1, p2), floor)
    z*     = ((1 + w) · z1 − w · z2) / max(2^(−kl_rate · KL(p1‖p2)), min_factor)

for every pair of the step in one call, whatever its method. −inf (algorithms.md §0.3): z1 = −inf
stays −inf; z2 = −inf beside a finite z1 counts as the guide row's smallest finite logit; a guide
row of only −inf counts as uniform. In the divergences masked entries weigh nothing.
NaN stays in its own row.
"""

from __future__ import annotations

from torch import Tensor, float32

from divserve_kernels import torch_backend
from divserve_kernels.layout import PARAMETERS, STATISTICS
from divserve_kernels.rows import Rows

__all__ = ["PARAMETERS", "STATISTICS", "Rows", "guide"]


def guide(logits: Tensor, rows: Rows) -> Tensor:
    """Overwrites the primary rows of ``logits`` with their guided logits.

    Args:
        logits: ``[R, V] float32`` raw logits of the step, no two primaries the same row and no
            primary another pair's guide; changed in place.
        rows: the pairs and their parameters, on the same device.

    Returns:
        ``[G, len(STATISTICS)] float32`` on the same device, not synchronised.

    Raises:
        TypeError: ``logits`` is not float32 (bfloat16 would round the result to ties).
    """
    if logits.dtype is not float32:
        raise TypeError(f"logits must be float32, not {logits.dtype}")
    return torch_backend.guide(logits, rows)
