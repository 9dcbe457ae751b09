"""How likely the draft tokens of a request are accepted, from its recent ones.

The j-th draft can only be accepted after the one before it, so what is counted is how often it was
accepted after that: drafts that copy a text fail at the first token or not for a while, which one
rate for all positions would not show.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Acceptance"]

KEPT = 1 - 1 / 16
"""What remains of earlier trials after one more at the same position."""
WEIGHT = 2.0
"""Trials that the rate of all requests counts for."""
UNKNOWN = 0.5
"""The rate where nothing has been drafted yet."""
SURPRISE = 0.3
"""A draft that is accepted at a lower rate halves the weight of what was seen before."""


class Acceptance:
    """Accepted drafts by position.

    Args:
        most: the longest draft.
        everybody: those of all requests together; None for these themselves.
    """

    def __init__(self, most: int, everybody: Acceptance | None = None) -> None:
        self._everybody = everybody
        self._trials, self._hits = [0.0] * most, [0.0] * most
        self.unseen = 0
        """Tokens since the last trial."""
        self._survival: list[float] | None = None

    def observe(self, verified: int, accepted: int, beyond: bool | None = None) -> None:
        """Notes one step of the request.

        Args:
            verified: draft tokens of the step.
            accepted: how many of them, from the first, were accepted.
            beyond: whether the next draft, which was not verified, was the next token; None:
                unknown.
        """
        results = [True] * accepted + [False] * (accepted < verified)
        if accepted == verified and beyond is not None and verified < len(self._trials):
            results.append(beyond)
        self.unseen = 0 if results else self.unseen + 1
        for position, hit in enumerate(results):
            self._add(position, hit)
            if self._everybody is not None:
                self._everybody._add(position, hit)

    def survival(self) -> Sequence[float]:
        """For each draft, how likely it and all before it are accepted; never increasing."""
        if self._survival is None:
            self._survival, alive = [], 1.0
            for position in range(len(self._trials)):
                alive *= self._rate(position)
                self._survival.append(alive)
        return self._survival

    def _add(self, position: int, hit: bool) -> None:
        kept = KEPT
        if hit and self._everybody is not None and self._rate(position) < SURPRISE:
            # The text has changed; a new rate should not take many trials.
            kept /= 2
        self._trials[position] = self._trials[position] * kept + 1
        self._hits[position] = self._hits[position] * kept + hit
        self._survival = None

    def _rate(self, position: int) -> float:
        """How likely the draft at a position is accepted after those before it."""
        if self._everybody is not None:
            prior = self._everybody._rate(position)
        else:
            prior = self._rate(position - 1) if position else UNKNOWN
        return (self._hits[position] + WEIGHT * prior) / (self._trials[position] + WEIGHT)
