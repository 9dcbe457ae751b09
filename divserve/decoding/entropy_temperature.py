"""EDT: sample coolly where the model is sure, at the full temperature where it is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.temperature import lowest_factor
from divserve_contract import Program

__all__ = ["EntropyTemperature"]


class EntropyTemperature(Method):
    """T_t = max(T · base^(theta / H), 1e-4) with the entropy H of the raw distribution in nats.

    Zhang et al. 2024. H is taken as at least 1e-6. It needs no second stream and costs no second
    row; the order of the tokens never changes and greedy requests (temperature 0) answer as without
    it. The paper tunes theta for each task. Penalties and ``logit_bias`` come after it: the cooler
    a token, the less they weigh.
    """

    title = "Entropy-based dynamic temperature"
    summary = "Diverse where the model is unsure, near-greedy where it is certain. No second row."
    formula = "T = T0·base^(theta/H(p1))"
    paper = "Zhang et al., 2024, arXiv:2403.14541"
    url = "https://arxiv.org/abs/2403.14541"
    needs = "nothing"
    role = "temperature"
    guided = False
    reports = ("entropy", "temperature")
    neutral: ClassVar[Mapping[str, float] | None] = {"theta": 0}

    method: Literal["entropy_temperature"]
    theta: float = Field(
        default=0.1, ge=0, le=100, description="How much certainty cools (nats); 0 is plain."
    )
    base: float = Field(default=0.8, gt=0, le=1, description="Base of the power; 1 is plain.")

    def program(self, temperature: float) -> Program:
        if self.theta == 0 or self.base == 1 or temperature == 0:
            return Program()
        return Program(
            entropy_rate=-self.theta * math.log2(self.base), min_factor=lowest_factor(temperature)
        )

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        used = statistics["factor"] * temperature
        return {"entropy": statistics["entropy"], "temperature": used}
