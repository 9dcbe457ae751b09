"""How likely the draft tokens of a request are accepted, from its recent ones.

The j-th draft can only be accepted after the one before it, so what is counted is how often it was
accepted after that: drafts that copy a text fail at the first token or not for a while, which one
rate for all positions would not show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

__all__ = ["Acceptance"]

KEPT = 1 - 1 / 16
"""What remains of earlier trials after one more at the same position."""
KEPT_UNTRIED = 0.98
"""What remains at a position that a step with drafts did not reach: it should be tried again."""
WEIGHT = 2.0
"""Trials that the rate of all requests counts for."""
UNKNOWN = 0.5
"""The rate where nothing has been drafted yet."""
CAUTION = 0.3
"""Standard deviations by which the rate of the first draft is taken lower: of many requests, some
seem better by chance, and drafts that are too long cost more than those that are too short."""
SURPRISE = 0.15
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
        """Steps since the last trial."""
        self._rates: list[float] | None = None
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
        if results:
            self._add(results)
            if self._everybody is not None:
                self._everybody._add(results)

    def survival(self) -> Sequence[float]:
        """For each draft, how likely it and all before it are accepted; never increasing.

        The first rate is taken lower, the more so the fewer trials there were.
        """
        if self._survival is None:
            first, *others = self._current()
            doubt = math.sqrt(first * (1 - first) / (self._trials[0] + WEIGHT))
            self._survival = [*accumulate((max(0.0, first - CAUTION * doubt), *others), mul)]
        return self._survival

    def _add(self, results: Sequence[bool]) -> None:
        """Adds a trial at each of the first positions."""
        trials, hits = self._trials, self._hits
        rates = self._current() if self._everybody is not None else None
        for position, hit in enumerate(results):
            kept = KEPT
            if hit and rates is not None and rates[position] < SURPRISE:
                # The text has changed; a new rate should not take many trials.
                kept /= 2
            trials[position] = trials[position] * kept + 1
            hits[position] = hits[position] * kept + hit
        for position in range(len(results), len(trials)):
            trials[position] *= KEPT_UNTRIED
            hits[position] *= KEPT_UNTRIED
        self._rates = self._survival = None

    def _current(self) -> list[float]:
        """How likely each draft is accepted after those before it."""
        if self._rates is None:
            if self._everybody is not None:
                priors: Sequence[float] = self._everybody._current()
                self._rates = [
                    (hits + WEIGHT * prior) / (trials + WEIGHT)
                    for hits, trials, prior in zip(self._hits, self._trials, priors, strict=True)
                ]
            else:
                self._rates, prior = [], UNKNOWN
                for hits, trials in zip(self._hits, self._trials, strict=True):
                    prior = (hits + WEIGHT * prior) / (trials + WEIGHT)
                    self._rates.append(prior)
        return self._rates
