"""KL-guided temperature: sample coolly where the document matters, freely where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.temperature import lowest_factor
from divserve_contract import Program

__all__ = ["KlTemperature"]


class KlTemperature(Method):
    """T_t = max(T · 2^(−KL(p_with‖p_without) / sigma), 1e-4) (Chang et al. 2023, §3).

    Only the primary's logits are sampled from, so the order of the tokens never changes and greedy
    requests (temperature 0) answer as without it. ``sigma`` is the KL in nats at which the
    temperature halves; 0 switches the method off, as in the authors' code. Penalties and
    ``logit_bias`` come after it: the cooler a token, the less they weigh.
    """

    title = "KL-guided temperature"
    summary = "Diverse where the document says nothing, near-greedy where it decides the token."
    formula = "T = T0·2^(−KL(p1‖p2)/sigma)"
    paper = "Chang et al., 2023, arXiv:2306.01286"
    url = "https://arxiv.org/abs/2306.01286"
    role = "temperature"
    reports = ("entropy", "kl", "jsd", "temperature")
    neutral: ClassVar[Mapping[str, float] | None] = {"sigma": 0}

    method: Literal["kl_temperature"]
    sigma: float = Field(
        default=1.0, ge=0, le=1000, description="KL (nats) that halves the temperature; 0 is plain."
    )

    def program(self, temperature: float) -> Program:
        if self.sigma == 0 or temperature == 0:
            return Program()
        return Program(kl_rate=1.0 / self.sigma, min_factor=lowest_factor(temperature))

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        s = statistics
        used = s["factor"] * temperature
        return {"entropy": s["entropy"], "kl": s["kl"], "jsd": s["jsd"], "temperature": used}
