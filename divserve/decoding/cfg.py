"""Classifier-free guidance for text: push away from what the model says without the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve_contract import Program

__all__ = ["Cfg"]


class Cfg(Method):
    """z* = z_guide + scale · (z − z_guide) (Sanchez et al. 2023, eq. 7).

    Without a guide the second stream starts from the last prompt token, as in the paper; a guide is
    a negative prompt. The paper finds 1.25 to 1.5 good, and worse reasoning above 1.5; 3 with a
    negative prompt makes a model keep to its system prompt.
    """

    title = "Classifier-free guidance"
    summary = "Makes the answer follow the prompt more closely, or steers it off a negative prompt."
    formula = "z* = z2 + scale·(z1 − z2)"
    paper = "Sanchez et al., 2023, arXiv:2306.17806"
    url = "https://arxiv.org/abs/2306.17806"
    needs = "a guide prompt, or nothing: the last prompt token"
    natural_guide = "last_token"
    reports = ("entropy", "kl", "jsd", "scale")
    neutral: ClassVar[Mapping[str, float] | None] = {"scale": 1}

    method: Literal["cfg"]
    scale: float = Field(default=1.5, ge=0, le=20, description="Guidance scale; 1 is plain.")

    def program(self, temperature: float) -> Program:
        return Program(alpha=self.scale - 1.0)

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        s = statistics
        return {"entropy": s["entropy"], "kl": s["kl"], "jsd": s["jsd"], "scale": self.scale}
