"""Columns and codes of the tables that the passes of the fused CPU back end share.

numba treats each of these names as a constant. The digit is the stream: 1 the primary, 2 its guide,
3 the third stream.
"""

from __future__ import annotations

__all__ = [
    "ABOVE", "AT1", "AT2", "AT3", "BELOW", "BLEND", "BOTH", "CHOOSE", "CLAMP2", "CLAMP3", "COMBINE",
    "COOLING", "DERIVED", "ENTROPY", "FOUND", "FROM2", "FROM3", "HIDDEN2", "JSD", "KEEP", "KEPT",
    "KL", "LINE", "LOGITS", "LOW1", "LOW2", "LOW3", "LSE1", "LSE2", "MIN_P", "MISSING", "MIX",
    "MODE", "PEAK1", "PEAK2", "PLACES", "SCALE", "SIDE", "SPECIAL", "SQUARES", "SUM1", "SUM2",
    "TOP1", "TOP2", "VARIATION", "VOCAB", "A", "B", "C",
]  # fmt: skip

# Per segment, float64. Pass 1: maximum, Σ exp(z − maximum), smallest finite logit.
TOP1, SUM1, LOW1, TOP2, SUM2, LOW2, LOW3 = range(7)
# Pass 2, in their place: divergences, Σ (p1 − p2)⁺, Σ p1², and three numbers of entries: those
# kept, those that the form counts, and those that are the most likely in both streams.
ENTROPY, KL, JSD, VARIATION, SQUARES, KEPT, SPECIAL, BOTH = range(8)
FOUND = 8
# Per row, float32. After pass 1: maxima, log-sum-exps, the values that replace −inf in a
# probability (HIDDEN) and in a logit (CLAMP), the smallest logit kept (LINE), the lines of
# `Form.SWITCH`, the smallest probability of `Form.PROBABILITY`. After pass 2: weights,
# 1 / temperature factor.
(
    PEAK1, PEAK2, LSE1, LSE2, HIDDEN2, CLAMP2, CLAMP3, LINE, ABOVE, BELOW, MIN_P, A, B, C, COOLING,
) = range(15)  # fmt: skip
DERIVED = 15
# Per row, int64: the tensors and places of its streams, their shared vocabulary, what pass 3 does.
FROM2, FROM3, AT1, AT2, AT3, VOCAB, MODE = range(7)
PLACES = 7
KEEP, SCALE, COMBINE, BLEND, CHOOSE, MIX = range(6)
"""Modes of pass 3."""
MISSING, LOGITS, SIDE = range(3)
"""The tensor that a stream is in."""
