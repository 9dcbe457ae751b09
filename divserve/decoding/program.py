"""What a method hands to the engine: a row of numbers for the kernel, and what the guides read.

Every method is a program of the one operation in ``divserve_kernels`` (formulas there), so rows of
different methods go through the same call. The columns are the kernel's ``PARAMETERS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from divserve.decoding.look import Look
from divserve.decoding.switch import Switch

__all__ = ["STATISTICS", "Form", "Program", "Spec"]

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


@dataclass(frozen=True, slots=True)
class Spec:
    """The order that travels with one request to the engine (plain types: it serialises)."""

    row: Program
    guides: list[list[int]] = field(default_factory=list)
    """Prompt token ids of the guide streams, none of them empty: first the guide of ``row``, then
    that of ``cooling``."""
    cooling: Program | None = None
    """A program whose temperature factor comes from the second guide; None: there is none."""
    grounding: list[int] = field(default_factory=list)
    """Token ids of a text whose distributions, reduced, are the third stream; empty: none."""
    average: bool = False
    """Whether they are reduced to the mean of their log-probs instead of the maximum."""
    amateurs: tuple[str, ...] = ()
    """Models whose logits are the second stream of ``row``, and the third; the guides are then for
    ``cooling`` alone."""
    switch: Switch | None = None
    """How the request moves between a small and a large engine; None: it stays where it is."""
    look: Look | None = None
    """How the request looks back at its own steps; None: it does not."""

    def to_wire(self) -> dict[str, Any]:
        """Returns a dict of plain lists for ``SamplingParams.extra_args``."""
        return {
            "row": list(self.row),
            "guides": self.guides,
            "cooling": None if self.cooling is None else list(self.cooling),
            "grounding": self.grounding,
            "average": self.average,
            "amateurs": list(self.amateurs),
            "switch": None if self.switch is None else self.switch.to_wire(),
            "look": None if self.look is None else self.look.to_wire(),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Spec:
        """Inverse of `to_wire`."""
        row: Sequence[float] = wire["row"]
        cooling: Sequence[float] | None = wire["cooling"]
        return cls(
            row=Program(*row),
            guides=[list(guide) for guide in wire["guides"]],
            cooling=None if cooling is None else Program(*cooling),
            grounding=list(wire["grounding"]),
            average=wire["average"],
            amateurs=tuple(wire["amateurs"]),
            switch=None if wire["switch"] is None else Switch.from_wire(wire["switch"]),
            look=None if wire["look"] is None else Look.from_wire(wire["look"]),
        )

    @property
    def streams(self) -> list[list[int]]:
        """Everything that is read beside the prompt: the guides, then the grounding text."""
        return [*self.guides, *([self.grounding] if self.grounding else [])]
