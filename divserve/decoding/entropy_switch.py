"""Entropy-adaptive switching: a small model decodes, and a large one where it is unsure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.switch import NATS_PER_BIT, ModelSize, Switch
from divserve_contract import Form, Program

__all__ = ["EntropySwitch"]


class EntropySwitch(Method):
    """The model of the next token follows from the mean entropy of the last ones (Simonds 2025).

    H_t is the entropy in bits of the active model's raw distribution (T = 1, before any mask). The
    rule and its corner cases are in `divserve.decoding.switch`. The paper's thresholds are not
    known; 1 bit is ours, and what it does to a pair of models is for the user to measure.
    """

    title = "Entropy-adaptive switching"
    summary = "Decodes with a small model and lets a large one take over where it is unsure."
    formula = "large while mean(H of the last `window` tokens) ≥ threshold, at least min_run tokens"
    paper = "Simonds 2025, arXiv:2502.06833"
    url = "https://arxiv.org/abs/2502.06833"
    needs = "a small model (serve with --small)"
    role = "switch"
    alone = True
    guided = False
    engines: ClassVar[tuple[str, ...]] = ("small",)
    reports = ("entropy_bits",)

    method: Literal["entropy_switch"]
    threshold: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Mean entropy (bits) from which the large model decodes; 0: as soon as it may.",
    )
    window: int = Field(default=5, ge=1, le=1024, description="Tokens that the mean is taken over.")
    min_run: int = Field(
        default=10, ge=1, le=100_000, description="Tokens before a model may hand over."
    )
    start: ModelSize = Field(default="small", description="The model that begins.")

    def switch(self) -> Switch:
        """The state in which a request begins."""
        return Switch(self.threshold, self.window, self.min_run, self.start)

    def program(self, temperature: float) -> Program:
        return Program(form=float(Form.OBSERVE))

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        """The entropy in the unit of the threshold."""
        return {"entropy_bits": statistics["entropy"] / NATS_PER_BIT}
