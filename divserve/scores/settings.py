"""Which scores a server offers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from divserve.scores.registry import SCORES, Score

__all__ = ["Scoring"]

DEFAULTS = ("loss", "ppl", "entropy", "varentropy", "rank", "log_rank")
WITH_GUIDE = ("pmi", "mean_pmi", "kl", "jsd")


@dataclass(frozen=True)
class Scoring:
    """The settings of the flags ``--scores`` and ``--frequencies``, and what is served."""

    membership: bool = False
    """Whether scores that ask how familiar a text is are offered."""
    log_frequencies: np.ndarray | None = None
    """``[V] float64``: see `divserve.scores.log_frequencies`."""

    def lacking(self, score: Score, extras: Iterable[str]) -> list[str]:
        """The flags that a score requires and the server was started without."""
        there = {"amateur": "amateur" in extras, "frequencies": self.log_frequencies is not None}
        flags = ["--scores membership"] if score.membership and not self.membership else []
        return flags + [f"--{need}" for need in score.needs if not there.get(need, True)]

    @staticmethod
    def defaults(guided: bool) -> tuple[str, ...]:
        """The scores of a request that names none."""
        return (*DEFAULTS, *(WITH_GUIDE if guided else ()))

    def listed(self, extras: Iterable[str]) -> list[dict[str, object]]:
        """What ``GET /v1/decoding/scores`` tells of each score."""
        known = frozenset(extras)
        return [
            {
                "score": name,
                "formula": score.formula,
                "larger_means": score.larger_means,
                "worth": score.worth,
                "needs": list(score.needs),
                "membership": score.membership,
                "available": not self.lacking(score, known),
                "url": score.url,
            }
            for name, score in SCORES.items()
        ]
