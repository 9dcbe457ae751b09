"""AdaCAD: context-aware decoding whose strength is the divergence of the two streams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.contrast import CONTRAST_REPORTS, contrast_report
from divserve_contract import Program

__all__ = ["AdaCad"]


class AdaCad(Method):
    """z* = (1 + a) · z_with − a · z_without with a = max(JSD(p_with, p_without), floor), per token.

    Wang et al. 2025, §3. The JSD comes from the unfiltered distributions at temperature 1. In nats,
    as in the authors' code, it never exceeds ln 2 = 0.693; third-party versions use bits, at most
    1. The paper sets floor 0 for question answering and 0.3 for summaries.
    """

    title = "Adaptive context-aware decoding"
    summary = "Makes the answer follow the document, only where document and memory disagree."
    formula = "z* = (1+a)·z1 − a·z2, a = max(JSD(p1,p2), floor)"
    paper = "Wang et al., NAACL 2025, arXiv:2409.07394"
    url = "https://arxiv.org/abs/2409.07394"
    reports = CONTRAST_REPORTS

    method: Literal["adacad"]
    floor: float = Field(default=0.0, ge=0, le=10, description="Smallest contrast strength.")
    jsd_base: Literal["nats", "bits"] = Field(default="nats", description="Unit of the JSD used.")

    def program(self, temperature: float) -> Program:
        scale = 1.0 if self.jsd_base == "nats" else 1 / math.log(2)
        return Program(jsd_scale=scale, floor=self.floor)

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return contrast_report(statistics)
