"""COIECD: contrast only the tokens on which the document and the model's memory are in conflict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.contrast import CONTRAST_REPORTS, contrast_report
from divserve_contract import Form, Program

__all__ = ["Coiecd"]


class Coiecd(Method):
    """Log-probs l1 (with the document) and l2 (without), per token (Yuan et al. 2024, their code)::

        near:   p1 > max p1 / ratio (unless only one token is), or p1 < min p1 · ratio
        z* = l1 + alpha · (l1 − l2)  where near
        z* = l2 + alpha · (l1 − l2)  elsewhere

    With alpha 1 the tokens that compete for the first place are contrasted as in CAD and all others
    keep l1; a step that one token dominates is decoded plainly. The entropy of the paper's
    "entropy constraint" cancels in the released code and is left out here.
    """

    title = "Contextual information-entropy constraint decoding"
    summary = "CAD only among the tokens that compete, so undisputed answers stay as they are."
    formula = "z* = (l1 if near an end of p1 else l2) + alpha·(l1 − l2)"
    paper = "Yuan et al., Findings of ACL 2024, arXiv:2402.11893"
    url = "https://arxiv.org/abs/2402.11893"
    reports = CONTRAST_REPORTS
    neutral: ClassVar[Mapping[str, float] | None] = {"ratio": 1, "alpha": 1}

    method: Literal["coiecd"]
    alpha: float = Field(default=1.0, ge=0, le=10, description="Contrast strength.")
    ratio: float = Field(
        default=4.0,
        ge=1,
        le=1e6,
        description="Tokens within this factor of the largest or smallest probability are near; "
        "1 is plain at alpha 1.",
    )

    def program(self, temperature: float) -> Program:
        if self.ratio == 1 and self.alpha == 1:
            return Program()
        return Program(form=float(Form.SWITCH), alpha=self.alpha, log_ratio=math.log(self.ratio))

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return contrast_report(statistics)
