"""The rule of entropy-adaptive switching: which of two models decodes the next token."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["NATS_PER_BIT", "SMALL_SUFFIX", "ModelSize", "Switch", "SwitchRule"]

ModelSize = Literal["small", "large"]

SMALL_SUFFIX = "@small"
"""Suffix of a model name that selects the small engine."""

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True, slots=True)
class Switch:
    """The state of a request: the rule's parameters, and what it has seen so far."""

    threshold: float
    """Mean entropy (bits) from which the large model decodes."""
    window: int
    """Number of tokens that the mean is taken over."""
    min_run: int
    """Minimum number of tokens that a model decodes before it hands over."""
    active: ModelSize = "small"
    """The model that decodes the next token."""
    recent: tuple[float, ...] = field(default=())
    """Entropies (bits) of the last tokens, at most ``window``."""
    run: int = 0
    """Tokens since the last switch."""


class SwitchRule:
    """Simonds 2025 (arXiv:2502.06833), for one request.

    After token t with entropy H_t of the model that made it: once ``window`` entropies are known
    and the run has ``min_run`` tokens, the large model is wanted if their mean is at least the
    threshold, else the small one. The window is kept across a switch.
    """

    def __init__(self, state: Switch) -> None:
        self._given = state
        self._recent = deque(state.recent, maxlen=state.window)
        self._run = state.run
        self._active: ModelSize = state.active

    @property
    def state(self) -> Switch:
        """The current state of the request."""
        return replace(self._given, active=self._active, recent=tuple(self._recent), run=self._run)

    def observe(self, entropy: float) -> bool:
        """Records the entropy (nats, of the raw distribution) of the token just decoded.

        Returns:
            Whether the other model decodes the next token.
        """
        self._recent.append(entropy / NATS_PER_BIT)
        self._run += 1
        given = self._given
        if len(self._recent) < given.window or self._run < given.min_run:
            return False
        # Exact, so that the bits of the account say which model is wanted at the threshold too.
        mean = math.fsum(self._recent) / given.window
        wanted: ModelSize = "large" if mean >= given.threshold else "small"
        if wanted == self._active:
            return False
        self._active, self._run = wanted, 0
        return True
