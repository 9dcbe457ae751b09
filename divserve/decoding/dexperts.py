"""DExperts: expert minus anti-expert, among the likely tokens of the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method, Role
from divserve.decoding.contrast import AMATEUR_REPORTS, amateur_report
from divserve_contract import Program

__all__ = ["DExperts"]


class DExperts(Method):
    """z* = z_base + alpha·(z_expert − z_anti) in the nucleus of the base model (Liu et al. 2021).

    The base is the served model, ``--tuned`` the expert, ``--amateur`` the anti-expert. The nucleus
    (mass ``filter_p``) is taken from the base's own distribution before the contrast, as in the
    released code, whose ``alpha`` is 0 in the signature; the paper uses 2.
    """

    title = "DExperts"
    summary = "Steers a model towards a small expert and away from a small anti-expert."
    formula = "z* = z_base + alpha·(z_tuned − z_amateur) in the nucleus of the base"
    paper = "Liu et al., ACL 2021, arXiv:2105.03023"
    url = "https://arxiv.org/abs/2105.03023"
    needs = "two small models (serve with --amateur and --tuned)"
    guided = False
    amateurs: ClassVar[tuple[str, ...]] = ("amateur", "tuned")
    reports = AMATEUR_REPORTS
    neutral: ClassVar[Mapping[str, float] | None] = {"alpha": 0, "filter_p": 1}

    method: Literal["dexperts"]
    alpha: float = Field(default=2.0, ge=0, le=20, description="Strength; 0 is none.")
    filter_p: float = Field(
        default=0.9, gt=0, le=1, description="Mass of the base's nucleus; 1 keeps all tokens."
    )

    @property
    def roles(self) -> frozenset[Role]:
        return frozenset({"contrast", "filter"} if self.filter_p < 1 else {"contrast"})

    def program(self, temperature: float) -> Program:
        return Program(
            alpha=self.alpha,
            primary_weight=1.0 - self.alpha,
            third_weight=self.alpha,
            top_p=self.filter_p,
        )

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return amateur_report(statistics)
