"""Figures of continuations: how much they repeat, and how close they stay to the opening.

Definitions as in Look-back decoding (Xu et al. 2023, arXiv 2305.13477), each for one text; a study
reports means over texts. The paper's embedding is SimCSE, so coherence is not comparable with the
paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Embedder", "coherence", "diversity", "rep_n"]

BATCH = 16
LONGEST = 256
"""Tokens of a text that the embedding reads: MiniLM was trained on no more."""


def rep_n(tokens: Sequence[Hashable], n: int) -> float:
    """Repeated n-grams in percent: 100·(1 − distinct n-grams / all n-grams).

    A text without n-grams gets 0.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 100 * (1 - len(set(grams)) / len(grams)) if grams else 0.0


def diversity(tokens: Sequence[Hashable]) -> float:
    """Π over n = 2, 3, 4 of the share of n-grams that are not repeated, 0 to 1."""
    return math.prod(1 - rep_n(tokens, n) / 100 for n in (2, 3, 4))


def coherence(
    embed: Callable[[Sequence[str]], Tensor], openings: Sequence[str], texts: Sequence[str]
) -> list[float]:
    """Cosine between the embeddings of each opening and its continuation, −1 to 1."""
    found: list[float] = (embed(openings) * embed(texts)).sum(-1).tolist()
    return found


@dataclass
class Embedder:
    """Mean of a model's last hidden states over the tokens of a text, normalised to length one."""

    name: str
    """Name in reports."""
    tokenizer: Any
    model: Any

    @classmethod
    def load(cls, folder: Path, name: str) -> Embedder:
        """Loads any encoder or decoder that transformers can load."""
        from transformers import AutoModel, AutoTokenizer

        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(name, AutoTokenizer.from_pretrained(folder, padding_side="right"), model)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """``[texts, width]``; an empty text has no direction and gets zeros."""
        found = []
        for start in range(0, len(texts), BATCH):
            # A space replaces an empty text, for which some tokenizers cannot make a tensor.
            some = [text or " " for text in texts[start : start + BATCH]]
            inputs = self.tokenizer(
                some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
            )
            states = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            means = (states * mask).sum(1) / mask.sum(1).clamp_min(1)
            written = torch.tensor([[bool(text.strip())] for text in texts[start : start + BATCH]])
            found.append(torch.nn.functional.normalize(means, dim=-1) * written)
        return torch.cat(found)
