"""Front end: the draft tokens of a choice, handed out with the tokens that they have become.

Not all that the engine reports is sent. Tokens of a step behind a stop string are dropped by vLLM's
front end, and so are steps that were under way when it was met. Their drafts must not be counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["DraftLog", "Drafted"]


@dataclass(slots=True)
class Drafted:
    """Draft tokens behind some tokens of a choice."""

    proposed: int = 0
    """Those that were verified."""
    accepted: int = 0
    """Tokens that were drafts."""
    rounds: int = 0
    """Steps that have verified any."""


class DraftLog:
    """What the engine has reported of one choice's drafts, token by token."""

    def __init__(self) -> None:
        self._told = 0
        """Tokens that were reported."""
        self._taken = 0
        """Tokens that were handed out."""
        self._steps: deque[tuple[int, int]] = deque()
        """Tokens of steps with drafts: their number in the answer, and how many drafts the step has
        verified; 0 for all but its first token."""

    def add(self, tokens: int, drafted: int) -> None:
        """Adds a step.

        Args:
            tokens: those that the choice has taken in it.
            drafted: draft tokens that were verified.
        """
        if drafted:
            self._steps.extend((self._told + i, 0 if i else drafted) for i in range(tokens))
        self._told += tokens

    def take(self, tokens: int) -> Drafted | None:
        """Hands out what is behind the next tokens; None if none of them is of a step with drafts.

        A step takes its first token whatever was drafted, so each further one was a draft.
        """
        self._taken += tokens
        found = None
        while self._steps and self._steps[0][0] < self._taken:
            found = found or Drafted()
            if verified := self._steps.popleft()[1]:
                found.proposed += verified
                found.rounds += 1
            else:
                found.accepted += 1
        return found
