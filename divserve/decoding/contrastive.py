"""Contrastive decoding: what an expert says more strongly than an amateur of its family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from divserve.decoding.base import Method, Role
from divserve.decoding.contrast import AMATEUR_REPORTS, amateur_report
from divserve_contract import Program

__all__ = ["Contrastive"]


class Contrastive(Method):
    """Among plausible tokens (p_e ≥ alpha·max p_e), the expert is pushed away from the amateur.

    ``form: "logits"``: z* = (1+beta)·z_e − beta·z_a/τ (O'Brien & Lewis 2023;
    alpha 0.1 in their §3.1). ``form: "original"``: z* = z_e − z_a/τ (Li et al. 2023, §5.1), which
    has no beta. τ is ``amateur_temperature``. The amateur reads the whole context (their code
    starts it at the last prompt token). Where the released greedy mode has no plausibility line and
    the beam search keeps two tokens, here the line of the papers holds for every token.
    """

    title = "Contrastive decoding"
    summary = "Takes from a large model what a small one of its family would have said anyway."
    formula = "z* = (1+beta)·z_e − beta·z_a/τ where p_e ≥ alpha·max p_e"
    paper = "Li et al., ACL 2023; O'Brien & Lewis 2023, arXiv:2309.09117"
    url = "https://arxiv.org/abs/2309.09117"
    needs = "an amateur model (serve with --amateur)"
    guided = False
    amateurs: ClassVar[tuple[str, ...]] = ("amateur",)
    reports = AMATEUR_REPORTS
    neutral: ClassVar[Mapping[str, float] | None] = {"beta": 0, "alpha": 0}

    method: Literal["contrastive"]
    alpha: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Tokens below this share of the expert's largest probability are dropped; 0 "
        "drops none.",
    )
    beta: float = Field(
        default=0.5, ge=0, le=20, description="Contrast strength of the form 'logits'; 0 is none."
    )
    amateur_temperature: float = Field(
        default=1.0, gt=0, le=100, description="The amateur's logits are divided by it."
    )
    form: Literal["logits", "original"] = Field(
        default="logits", description="O'Brien & Lewis 2023, or Li et al. 2023."
    )

    @model_validator(mode="after")
    def _beta_has_a_place(self) -> Contrastive:
        if self.form == "original" and "beta" in self.model_fields_set:
            raise PydanticCustomError(
                "beta_unused", "the form 'original' has no 'beta': leave it out, or use 'logits'"
            )
        return self

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({"contrast", "filter"} if self.alpha > 0 else {"contrast"})

    def program(self, temperature: float) -> Program:
        strength = 1.0 if self.form == "original" else self.beta
        expert = 1.0 if self.form == "original" else 1.0 + self.beta
        weight = strength / self.amateur_temperature
        return Program(
            alpha=weight,
            primary_weight=expert - weight,
            log_plausibility=math.log(self.alpha) if self.alpha > 0 else -math.inf,
        )

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return amateur_report(statistics)
