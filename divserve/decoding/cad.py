"""Context-aware decoding (CAD): a constant contrast against the answer without the document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.contrast import CONTRAST_REPORTS, contrast_report
from divserve_contract import Program

__all__ = ["Cad"]


class Cad(Method):
    """z* = (1 + alpha) · z_with − alpha · z_without (Shi et al. 2024, eq. 3), on raw logits.

    Use it when answers must follow the document even where the model remembers otherwise. It
    contrasts every token equally, so answers that need no document get a little worse: prefer
    `adacad` for mixed traffic. The paper uses 0.5 for summaries and 1.0 for knowledge conflicts.
    """

    title = "Context-aware decoding"
    summary = "Makes the answer follow the document, with a constant strength."
    formula = "z* = (1+alpha)·z1 − alpha·z2"
    paper = "Shi et al., NAACL 2024, arXiv:2305.14739"
    url = "https://arxiv.org/abs/2305.14739"
    reports = CONTRAST_REPORTS
    neutral: ClassVar[Mapping[str, float] | None] = {"alpha": 0}

    method: Literal["cad"]
    alpha: float = Field(default=0.5, ge=0, le=10, description="Contrast strength; 0 is plain.")

    def program(self, temperature: float) -> Program:
        return Program(alpha=self.alpha)

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return contrast_report(statistics)
