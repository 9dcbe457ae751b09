"""Linear alignment: CAD's contrast for a principle, inside the nucleus of the aligned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method, Role
from divserve.decoding.contrast import CONTRAST_REPORTS, contrast_report
from divserve_contract import Program

__all__ = ["LinearAlignment"]

GREEDY_TEMPERATURE = 0.5
"""Temperature of the nucleus of a greedy request: the one in the authors' scripts."""


class LinearAlignment(Method):
    """z* = (1 + ratio) · z_with − ratio · z_without inside the nucleus of softmax(z_with / T).

    Gao et al. 2024, their code (``contra_generate``). Despite the name there are no gradients: the
    guide is the prompt without the principle ("answer politely", say). The code reads its
    ``--top_p`` under another key, so 0.8 was always used. Their scripts take ratio 3 and 5.
    """

    title = "Linear alignment"
    summary = "Makes the answer follow a principle, only among tokens that were likely anyway."
    formula = "z* = (1+ratio)·z1 − ratio·z2 in the nucleus of softmax(z1/T)"
    paper = "Gao et al., ICML 2024, arXiv:2401.11458"
    url = "https://arxiv.org/abs/2401.11458"
    reports = (*CONTRAST_REPORTS, "candidates")
    neutral: ClassVar[Mapping[str, float] | None] = {"ratio": 0, "nucleus": 1}

    method: Literal["linear_alignment"]
    ratio: float = Field(default=2.0, ge=0, le=20, description="Contrast strength; 0 is none.")
    nucleus: float = Field(
        default=0.8, gt=0, le=1, description="Mass of the nucleus that is kept; 1 keeps all."
    )
    nucleus_temperature: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Its temperature; by default the request's own, 0.5 if that is 0.",
    )

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({"contrast", "filter"} if self.nucleus < 1 else {"contrast"})

    def program(self, temperature: float) -> Program:
        used = self.nucleus_temperature or temperature or GREEDY_TEMPERATURE
        if self.nucleus == 1:
            return Program(alpha=self.ratio)
        return Program(alpha=self.ratio, top_p=self.nucleus, top_p_temperature=used)

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return {**contrast_report(statistics), "candidates": statistics["kept"]}
