"""A scored text: what the formulas are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from divserve.decoding import EXCLUDED, FIGURES, Read

__all__ = ["ScoredText"]


@dataclass(frozen=True)
class ScoredText:
    """The figures of a text's N tokens, in float64, and what some scores need beside them."""

    figures: np.ndarray
    """``[N, len(FIGURES)] float64``; the log-prob of a token that a method excludes is −inf."""
    token_ids: Sequence[int]
    content: bytes = b""
    """The text in UTF-8."""
    lower_loss: float | None = None
    """The loss of the text in lower case."""
    log_frequencies: np.ndarray | None = None
    """``[V] float64``: the log of how often each token occurs in a large corpus."""
    k: float = 0.2
    """The share of tokens of ``min_k`` and ``min_k_pp``."""
    cap: float = 0.01
    """The largest product of ``dc_pdd``."""

    @classmethod
    def figures_of(cls, read: Read) -> np.ndarray:
        """`figures` of what the engine has returned."""
        table = np.frombuffer(read.figures, np.float32).reshape(-1, len(FIGURES))
        found: np.ndarray = table.astype(np.float64)
        for name in ("logprob", "own_logprob", "guide_logprob", "reference_logprob"):
            column = found[:, FIGURES.index(name)]
            column[column <= EXCLUDED] = -np.inf
        return found

    def __getitem__(self, name: str) -> np.ndarray:
        """One figure of all tokens, ``[N]``."""
        column: np.ndarray = self.figures[:, FIGURES.index(name)]
        return column

    @property
    def loss(self) -> float:
        """−mean log-prob."""
        return -float(self["logprob"].mean())
