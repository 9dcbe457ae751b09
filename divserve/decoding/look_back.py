"""Look-back decoding: a step too close to an earlier one picks its token by looking ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from divserve.decoding.base import Method
from divserve.decoding.look import MAX_CANDIDATES, Look, LookRow, LookState, Reference
from divserve_contract import Form, Program

__all__ = ["LookBack"]


class LookBack(Method):
    """Xu et al. 2023, Algorithm 1. Divergences in nats, at temperature 1.

    The paper's reference for an alarm is the prefix and what was generated, at most ``window``
    steps back; its reference for the candidates is the whole prefix. It prints no thresholds (they
    are tuned per model within 0.5 … 1.6); 1 nat did best with SmolLM2.
    """

    title = "Look-back decoding"
    summary = "Where a step resembles an earlier one, takes the candidate that stays on the topic."
    formula = (
        "if min_j KL(p_t‖p_j) ≤ threshold: x ~ softmax(−min over prefix of KL(p_{t+1,x}‖p_j)) over "
        "the k likeliest x; else argmax p_t"
    )
    paper = "Xu et al., EMNLP 2023, arXiv:2305.13477"
    url = "https://arxiv.org/abs/2305.13477"
    needs = "a store of hidden states (serve with --look-back)"
    role = "search"
    alone = True
    guided = False
    engines: ClassVar[tuple[str, ...]] = ("look-back",)
    reports = ("kl_min", "alarm", "entropy")

    method: Literal["look_back"]
    threshold: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Nats: at or below this KL to an earlier step the look-ahead begins.",
    )
    k: int = Field(
        default=8, ge=1, le=MAX_CANDIDATES, description="Likeliest tokens that are looked at."
    )
    window: int = Field(
        default=128,
        ge=0,
        le=1_000_000,
        description="Steps back that are compared with; 0: all.",
    )
    reference: Reference = Field(
        default="prefix+generated", description="The steps that are compared with."
    )
    otherwise: Literal["argmax", "sample"] = Field(
        default="argmax",
        description="What a step without alarm does: take the likeliest token (the paper), or "
        "sample as the request says (an extension).",
    )

    def look(self, temperature: float) -> Look:
        """The rule for the engine."""
        greedy = self.otherwise == "argmax" or temperature == 0
        return Look(self.threshold, self.k, self.window, self.reference, greedy)

    def program(self, temperature: float) -> Program:
        return Program(form=float(Form.OBSERVE))

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        """``alarm`` is 1 for a token that was chosen by looking ahead, else 0."""
        names = ("kl_min", "alarm", "entropy")
        return {name: statistics[name] for name in names}

    @staticmethod
    def statistics(extra: Sequence[float]) -> dict[str, float]:
        """The figures of a `LookRow` under the names that `report` reads."""
        row = LookRow.read(extra)
        return {"kl_min": row.kl_min, "alarm": float(row.state == LookState.CHOSEN)}

    @staticmethod
    def details(extra: Sequence[float]) -> dict[str, Any]:
        """Further fields of a trace entry: the nearest earlier step, the candidates of an alarm."""
        row = LookRow.read(extra)
        found: dict[str, Any] = {"nearest": row.nearest if row.nearest > 0 else None}
        if row.state == LookState.CHOSEN:
            found["candidates"] = [
                {"token_id": token, "kl": kl} for token, kl in zip(row.tokens, row.kls, strict=True)
            ]
        return found
