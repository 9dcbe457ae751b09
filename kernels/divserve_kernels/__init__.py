"""The one operation in every step: guides rows of logits by other rows, in one call for all.

Each guided row follows its own program (``divserve_contract.Program``), whatever methods the others
use::

    z1, z2, z3  the primary's logits, its guide's, a third stream's; p1, p2 their distributions
    w       = max(alpha + jsd_scale·JSD(p1, p2), floor)
    a, b    = primary_weight + w, guide_weight − w
    LINEAR        z* = a·z1 + b·z2 + third_weight·z3
    SWITCH        z* = (ln p1 if near an end else ln p2) + w·(ln p1 − ln p2); near the bottom:
                  ln p1 < min + log_ratio; near the top: ln p1 > max − log_ratio, if two are
    PROBABILITY   z* = ln(a·p1 + b·p2) where p1 ≥ min_prob/V, if Σp1² ≤ gate; else z1
    OBSERVE       nothing but the statistics
    keep    z1 ≥ max z1 + log_plausibility, and the nucleus of mass top_p of softmax(z1/T)
    z*      ← z* / max(2^(−kl_rate·KL(p1‖p2) − entropy_rate/H(p1)), min_factor); −inf if not kept

    overlap = Σ min(p1, p2) = 1 − TV(p1, p2): how often speculative sampling (Leviathan et al. 2023)
              would accept a token drafted from the guide; 1 without a guide
    agree   = 1 if z1(v) = max z1 and z2(v) = max z2 for some token v, else 0; 1 without a guide

−inf: z1 = −inf stays −inf. z2 or z3 = −inf beside a finite z1 counts as the
smallest finite logit of its row, and as probability 0 in the divergences and the overlap. A stream
that is −inf everywhere counts as uniform; a primary that is stays so, with statistics of 0. Streams
of different length share the shortest vocabulary: entries beyond it are −inf and in no statistic.
NaN affects only its own row, whose statistics are NaN.
"""

from __future__ import annotations

from torch import Tensor, float32

from divserve_contract import PARAMETERS, STATISTICS, Form
from divserve_kernels import backends
from divserve_kernels.candidates import likeliest
from divserve_kernels.history import Nearest, expected_row, nearest
from divserve_kernels.layout import ABSENT, side_row
from divserve_kernels.streams import Programs, Streams
from divserve_kernels.top import top_logprobs

__all__ = [
    "ABSENT",
    "PARAMETERS",
    "STATISTICS",
    "Form",
    "Nearest",
    "Programs",
    "Streams",
    "expected_row",
    "guide",
    "likeliest",
    "nearest",
    "side_row",
    "top_logprobs",
]  # fmt: skip


def guide(
    logits: Tensor, streams: Streams, *, side: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Writes the guided logits of the primary rows; the device decides the back end.

    Args:
        logits: ``[R, V] float32 or bfloat16``: raw logits of the step. No two primaries are the
            same row, and no primary is another row's guide.
        streams: which rows are guided, by which rows and how; on the same device.
        side: ``[H, W] float32 or bfloat16``: logits of amateurs, or vectors computed beforehand.
        out: ``[R, V] float32``: its primary rows are overwritten from the first entry to the last;
            by default ``logits`` itself, which must then be float32.

    Returns:
        ``[G, len(STATISTICS)] float32`` on the same device, not synchronised.

    Raises:
        TypeError: the result would have to be written to logits that are not float32 (bfloat16
            would round it to ties).
    """
    out = logits if out is None else out
    if out.dtype is not float32:
        raise TypeError(f"guided logits are float32: give 'out' for logits of {logits.dtype}")
    return backends.choose(logits.device).run(logits, streams, side, out)
