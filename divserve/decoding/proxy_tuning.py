"""Proxy-tuning: a large model steered by what tuning changed in a small one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.contrast import AMATEUR_REPORTS, amateur_report
from divserve_contract import Program

__all__ = ["ProxyTuning"]


class ProxyTuning(Method):
    """z* = z_base + alpha·(z_tuned − z_amateur), from raw logits (Liu et al. 2024).

    The base is the served model, ``--tuned`` the small tuned one and ``--amateur`` the same small
    model before tuning. All read the same prompt (their chat expert may get one of its own).
    """

    title = "Proxy-tuning"
    summary = "Gives a large model what tuning gave a small one, without tuning the large one."
    formula = "z* = z_base + alpha·(z_tuned − z_amateur)"
    paper = "Liu et al., COLM 2024, arXiv:2401.08565"
    url = "https://arxiv.org/abs/2401.08565"
    needs = "two small models (serve with --amateur and --tuned)"
    guided = False
    amateurs: ClassVar[tuple[str, ...]] = ("amateur", "tuned")
    reports = AMATEUR_REPORTS
    neutral: ClassVar[Mapping[str, float] | None] = {"alpha": 0}

    method: Literal["proxy_tuning"]
    alpha: float = Field(default=1.0, ge=0, le=20, description="Strength; 0 is none.")

    def program(self, temperature: float) -> Program:
        return Program(alpha=self.alpha, primary_weight=1.0 - self.alpha, third_weight=self.alpha)

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return amateur_report(statistics)
