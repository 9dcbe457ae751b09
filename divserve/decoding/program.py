"""What a method hands to the kernel: a program of 16 numbers; and what comes back: statistics.

Every method is a program of the one operation in ``divserve_kernels`` (formulas there), so rows of
different methods go through the same call. The columns are the kernel's ``PARAMETERS``.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

__all__ = ["STATISTICS", "Form", "Program"]

STATISTICS = (
    "entropy", "kl", "jsd", "max_prob", "sum_p2", "alpha", "factor", "kept", "overlap", "agree",
)  # fmt: skip
"""Columns of the statistics row that the engine returns for every guided token (nats).

``max_prob`` and ``sum_p2`` (Σp²) are of the primary's raw distribution; ``alpha`` is the weight
that was taken off the guide, ``factor`` what the temperature was multiplied by, ``kept`` the number
of tokens that could still be sampled. ``overlap`` is Σ min(p1, p2), the probability that a token
drafted from the guide would be accepted; ``agree`` is 1 if some token is likeliest in both raw
distributions, else 0.
"""


class Form(IntEnum):
    """What is computed; the kernel's codes."""

    OBSERVE = 0
    LINEAR = 1
    SWITCH = 2
    PROBABILITY = 3


class Program(NamedTuple):
    """Program of one guided row; the defaults leave the primary's logits as they are."""

    form: float = float(Form.LINEAR)
    alpha: float = 0.0
    """Constant part of the contrast weight w."""
    jsd_scale: float = 0.0
    """Weight added per nat of JSD(p1, p2)."""
    floor: float = -math.inf
    """Smallest contrast weight."""
    primary_weight: float = 1.0
    """Weight of the primary, to which w is added."""
    guide_weight: float = 0.0
    """Weight of the guide, from which w is taken."""
    third_weight: float = 0.0
    """Weight of the third stream."""
    log_ratio: float = 0.0
    """Nats from the ends of a distribution that count as near (`Form.SWITCH`)."""
    gate: float = 1.0
    """Largest Σp² at which `Form.PROBABILITY` contrasts."""
    min_prob: float = 0.0
    """Smallest probability that it keeps, in units of 1/V."""
    log_plausibility: float = -math.inf
    """Nats below the likeliest token at which tokens are dropped."""
    top_p: float = 1.0
    """Mass of the nucleus of the primary that is kept; 1 keeps all."""
    top_p_temperature: float = 1.0
    """Temperature of the distribution whose nucleus it is."""
    kl_rate: float = 0.0
    """Halvings of the temperature per nat of KL(p1‖p2)."""
    entropy_rate: float = 0.0
    """Halvings of the temperature times the entropy of p1 (nats)."""
    min_factor: float = 1e-4
    """Smallest temperature factor."""

    def drops_tokens(self) -> bool:
        """Whether it may give tokens the probability 0."""
        return self.top_p < 1 or self.log_plausibility > -math.inf or self.form == Form.PROBABILITY
