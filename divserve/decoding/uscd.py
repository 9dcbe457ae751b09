"""USCD: contrast probabilities against a lame prompt, only where the model is uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from divserve.decoding.base import Method
from divserve.decoding.contrast import CONTRAST_REPORTS, contrast_report
from divserve_contract import Form, Program

__all__ = ["Uscd"]

AUTHORS_VOCAB = 32_016
"""Size of CodeLlama's vocabulary, for which the authors chose ``s0``."""


class Uscd(Method):
    """q(v) = p_standard(v) − weight · p_lame(v) where Σ p_standard² ≤ uncertainty, else plain.

    Wang et al. 2024, their code (``EnsembleLogitsProcessor``): a difference of probabilities, not
    of logits, over the tokens with p_standard ≥ floor / V; tokens with q ≤ 0 are dropped. The guide
    is the "lame" prompt, without its examples. The authors' gate, a standard deviation ``s0`` over
    the vocabulary, depends on V: here it is a threshold on Σp², and ``s0`` is converted at their V
    (0.005 is 0.80, 0.0035 is 0.39). If no token is left, the step is plain.
    """

    title = "Uncertainty-aware selective contrastive decoding"
    summary = "Better code from prompts with examples, contrasting only uncertain steps."
    formula = "z* = ln(p1 − weight·p2) if Σp1² ≤ uncertainty else z1"
    paper = "Wang et al., 2024, arXiv:2409.05923"
    url = "https://arxiv.org/abs/2409.05923"
    needs = "a guide prompt (the prompt without its examples)"
    reports = (*CONTRAST_REPORTS, "sum_p2")
    neutral: ClassVar[Mapping[str, float] | None] = {"weight": 0}

    method: Literal["uscd"]
    weight: float = Field(default=0.7, ge=0, le=10, description="Contrast strength; 0 is plain.")
    uncertainty: float = Field(
        default=0.8, ge=0, le=1, description="Largest Σp² of a step that is contrasted."
    )
    s0: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="The gate as the paper gives it (standard deviation at V = 32,016), instead of "
        "'uncertainty'.",
    )
    floor: float = Field(
        default=2 / 3, ge=0, le=1000, description="Smallest probability kept, in units of 1/V."
    )

    @model_validator(mode="after")
    def _one_gate(self) -> Uscd:
        if self.s0 is not None and "uncertainty" in self.model_fields_set:
            raise PydanticCustomError(
                "gate_choice", "give 'uncertainty' or 's0', not both: they are the same gate"
            )
        return self

    @property
    def gate(self) -> float:
        """The threshold on Σp²: s² · (V − 1) + 1/V of the standard deviation s (ddof 1)."""
        if self.s0 is None:
            return self.uncertainty
        return min(1.0, self.s0**2 * (AUTHORS_VOCAB - 1) + 1 / AUTHORS_VOCAB)

    def program(self, temperature: float) -> Program:
        if self.weight == 0:
            return Program()
        return Program(
            form=float(Form.PROBABILITY),
            guide_weight=-self.weight,
            gate=self.gate,
            min_prob=self.floor,
        )

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return {**contrast_report(statistics), "sum_p2": statistics["sum_p2"]}
