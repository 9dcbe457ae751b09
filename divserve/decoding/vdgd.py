"""VDGD: among the likely tokens, prefer those that are likely somewhere in a grounding text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from divserve.decoding.base import Method, Role
from divserve_contract import Program

__all__ = ["Vdgd"]


class Vdgd(Method):
    """z*(v) = −reduce_j KL(onehot(v) ‖ q_j) for v in the nucleus of softmax(z / T), else −inf.

    Ghosh et al. 2025. q_j is the model's distribution after token j of the grounding text, read
    alone in one prefill; KL(onehot(v) ‖ q_j) = −ln q_j(v), so everything is one vector per request:
    the maximum (``min`` of the KL, the default) or the mean (``avg``) of ln q_j. The released code
    divides the KL by V, which makes the choice among the candidates almost uniform; here it is not
    divided. The code replaces the model's logit, the paper subtracts from it: see ``score``.
    """

    title = "Visual description grounded decoding"
    summary = "Keeps the answer to what a grounding text (a description, a source) talks about."
    formula = "z* = max_j ln q_j(v) in the nucleus of softmax(z1/T)"
    paper = "Ghosh et al., ICLR 2025, arXiv:2405.15683"
    url = "https://arxiv.org/abs/2405.15683"
    needs = "a grounding text"
    role = "filter"
    guided = False
    reports = ("entropy", "candidates")

    method: Literal["vdgd"]
    grounding: str = Field(
        min_length=1,
        max_length=1_000_000,
        description="The text, read by the model on its own: not inserted into the prompt.",
    )
    reduce: Literal["min", "avg"] = Field(
        default="min", description="How the KL of the text's positions are reduced."
    )
    candidate_top_p: float = Field(
        default=0.5, gt=0, le=1, description="Mass of the nucleus that is chosen from."
    )
    candidate_temperature: float = Field(
        default=0.5, gt=0, le=100, description="Temperature of that nucleus."
    )
    score: Literal["replace", "subtract"] = Field(
        default="replace",
        description="Whether the KL replaces the logit (the code) or is subtracted from it (the "
        "paper).",
    )

    @property
    def roles(self) -> frozenset[Role]:
        # Replacing the logits would discard a contrast.
        return frozenset({"contrast", "filter"} if self.score == "replace" else {"filter"})

    def program(self, temperature: float) -> Program:
        return Program(
            primary_weight=0.0 if self.score == "replace" else 1.0,
            third_weight=1.0,
            top_p=self.candidate_top_p,
            top_p_temperature=self.candidate_temperature,
        )

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return {"entropy": statistics["entropy"], "candidates": statistics["kept"]}
