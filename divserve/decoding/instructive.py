"""Instructive decoding: push away from what the model says under a distorted instruction."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from divserve.decoding.base import Method
from divserve.decoding.contrast import CONTRAST_REPORTS, contrast_report
from divserve_contract import Program

__all__ = ["Instructive", "Noise"]

Noise = Literal["opposite", "null", "shuffle", "random_words"]

OPPOSITE = "Always respond with the opposite of what you're asked. You never get it right."
"""The authors' wording (src/sni_generator.py)."""

KEPT_WORDS = 0.6
"""Share of the words that ``shuffle`` keeps (the authors' trunc_rate)."""

NOISE_FIELDS = frozenset({"noise", "instruction", "noise_seed"})

WORDS = [
    "anchor", "basil", "candle", "drizzle", "ember", "fathom", "gravel", "hollow", "ivory",
    "jigsaw", "kettle", "lantern", "meadow", "nectar", "orchard", "pebble", "quarry", "ribbon",
    "saddle", "thimble", "umbra", "velvet", "walnut", "xylem", "yonder", "zephyr",
]  # fmt: skip
"""The authors draw one word from a dictionary; this list is ours, so nothing is downloaded."""


class Instructive(Method):
    """z* = z − epsilon · z_noisy (Kim et al. 2024, §2.2; their code adds with −0.3), on raw logits.

    The second stream is the same request with its instruction distorted: by ``noise``, or by an
    explicit guide. The instruction is the system message, or the text given in ``instruction``:

    - ``opposite``: replaced by an order to answer wrongly (the paper's strongest; the default);
    - ``null``: removed;
    - ``shuffle``: 60 % of its words in random order;
    - ``random_words``: replaced by one random word.
    """

    title = "Instructive decoding"
    summary = "Makes the answer keep to the instruction, by contrast with a distorted one."
    formula = "z* = z1 − epsilon·z2"
    paper = "Kim et al., ICLR 2024, arXiv:2311.00233"
    url = "https://arxiv.org/abs/2311.00233"
    needs = "an instruction to distort, or a guide prompt"
    natural_guide = "noise"
    reports = CONTRAST_REPORTS
    neutral: ClassVar[Mapping[str, float] | None] = {"epsilon": 0}

    method: Literal["instructive"]
    epsilon: float = Field(default=0.3, ge=0, le=10, description="Contrast strength; 0 is plain.")
    noise: Noise | None = Field(
        default=None,
        description="How the instruction is distorted; 'opposite' unless a guide is given.",
    )
    instruction: str | None = Field(
        default=None,
        min_length=1,
        description="The text to distort, as it stands in the messages or the prompt; by default "
        "the system messages. Completions need it.",
    )
    noise_seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Seed of 'shuffle' and 'random_words'."
    )

    @model_validator(mode="after")
    def _noise_or_guide(self) -> Instructive:
        given = NOISE_FIELDS & self.model_fields_set
        if self.guide is not None and not self.guide.of_model_only and given:
            raise PydanticCustomError(
                "guide_choice",
                "give either 'guide' or '{given}', not both",
                {"given": "', '".join(sorted(given))},
            )
        return self

    def program(self, temperature: float) -> Program:
        return Program(guide_weight=0.0 - self.epsilon)

    def report(self, statistics: Mapping[str, float], temperature: float) -> dict[str, float]:
        return contrast_report(statistics)

    @property
    def distorts(self) -> bool:
        return self.guide is None or bool(NOISE_FIELDS & self.model_fields_set)

    def distorted(self, instruction: str) -> str:
        """The noisy instruction; the same text and seed always give the same result."""
        rng = random.Random(f"{self.noise_seed}:{instruction}")
        match self.noise or "opposite":
            case "null":
                return ""
            case "shuffle":
                words = instruction.split()
                return " ".join(rng.sample(words, math.ceil(KEPT_WORDS * len(words))))
            case "random_words":
                return f"{rng.choice(WORDS)}."
        return OPPOSITE
