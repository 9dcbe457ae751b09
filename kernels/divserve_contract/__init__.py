"""What a method and a kernel agree on: the numbers of a program, the statistics and the forms.

Methods (``divserve.decoding``) must not import torch, and kernels (``divserve_kernels``) must not
import divserve. Both import this package, which imports neither, so there is one definition. It is
not a module of ``divserve_kernels``, because importing any of those imports torch. The formulas are
in ``divserve_kernels``.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "EXCLUDED", "FIGURES", "PARAMETERS", "STATISTICS", "Figures", "Form", "Program", "Statistics",
]  # fmt: skip

EXCLUDED = -1e4
"""The log-prob of a token of a given text that the method gives no probability."""


class Form(IntEnum):
    """What is computed for a row; one number of its program is the code."""

    OBSERVE = 0
    """Statistics only; the logits are not touched."""
    LINEAR = 1
    """z* = a·z1 + b·z2 + c·z3."""
    SWITCH = 2
    """One of two log-prob contrasts per token (COIECD)."""
    PROBABILITY = 3
    """log(a·p1 + b·p2) if the primary is uncertain (USCD)."""


class Program(NamedTuple):
    """What is done to one guided row; the defaults return its logits bit for bit."""

    form: float = float(Form.LINEAR)
    """The code of a `Form`."""
    alpha: float = 0.0
    """Constant part of the contrast weight w."""
    jsd_scale: float = 0.0
    """Weight added per nat of JSD(p1, p2)."""
    floor: float = -math.inf
    """Smallest contrast weight."""
    primary_weight: float = 1.0
    """Weight of the primary, to which w is added."""
    guide_weight: float = 0.0
    """Weight of the guide, from which w is subtracted."""
    third_weight: float = 0.0
    """Weight of the third stream."""
    log_ratio: float = 0.0
    """Distance in nats from an end of a distribution that counts as near it (`Form.SWITCH`)."""
    gate: float = 1.0
    """Largest Σp² at which `Form.PROBABILITY` contrasts."""
    min_prob: float = 0.0
    """Smallest probability that `Form.PROBABILITY` keeps, in units of 1/V."""
    log_plausibility: float = -math.inf
    """Offset in nats (at most 0) from the most likely token; tokens below that are dropped."""
    top_p: float = 1.0
    """Mass of the primary's nucleus that is kept; 1 keeps all."""
    top_p_temperature: float = 1.0
    """Temperature of the distribution whose nucleus is taken."""
    kl_rate: float = 0.0
    """Halvings of the temperature per nat of KL(p1‖p2)."""
    entropy_rate: float = 0.0
    """Halvings of the temperature are this divided by the entropy of p1 (nats)."""
    min_factor: float = 1e-4
    """Smallest temperature factor."""

    def drops_tokens(self) -> bool:
        """Whether it may give tokens probability 0."""
        return self.top_p < 1 or self.log_plausibility > -math.inf or self.form == Form.PROBABILITY


class Statistics(NamedTuple):
    """What is reported for one guided row at every token; divergences and entropy in nats."""

    entropy: float
    """Of the primary's raw distribution p1."""
    kl: float
    """KL(p1‖p2), both clipped at 1e-7."""
    jsd: float
    """JSD(p1, p2)."""
    max_prob: float
    """The largest probability of p1."""
    sum_p2: float
    """Σ p1²."""
    alpha: float
    """The weight with which the guide was subtracted."""
    factor: float
    """The factor that the temperature was multiplied by."""
    kept: float
    """Number of tokens that can still be sampled."""
    overlap: float
    """Σ min(p1, p2): the probability that a token drafted from the guide would be accepted."""
    agree: float
    """1 if some token is the most likely one in both raw distributions, else 0."""


class Figures(NamedTuple):
    """What is returned for one scored token, in nats; NaN where a stream is missing.

    p is the distribution at the token's position: that of the program if it is applied, else the
    model's own. q is the guide's, r the first amateur's; comparisons are of raw distributions.
    """

    logprob: float
    """log p(token)."""
    rank: float
    """1 + the number of tokens that are likelier under p."""
    entropy: float
    """H(p)."""
    varentropy: float
    """The variance of log p under p."""
    own_logprob: float
    """log-prob of the token under the model's raw distribution."""
    guide_logprob: float
    """log q(token)."""
    kl: float
    """KL(model‖guide)."""
    jsd: float
    """JSD(model, guide)."""
    reference_logprob: float
    """log r(token)."""
    cross_entropy: float
    """−Σ r log(model)."""
    cross_variance: float
    """The variance of log(model) under r."""


PARAMETERS = Program._fields
"""Names of a program's numbers, in the order of the kernel's table."""

STATISTICS = Statistics._fields
"""Names of the statistics, in the order of the columns that the kernel returns."""

FIGURES = Figures._fields
"""Names of the figures, in the order of the columns."""
