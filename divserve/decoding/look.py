"""What look-back decoding asks of the engine, and what the engine reports for a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

__all__ = ["MAX_CANDIDATES", "Look", "LookRow", "LookState", "Reference"]

Reference = Literal["prefix+generated", "prefix", "generated"]
"""The earlier steps that a step is compared with."""

MAX_CANDIDATES = 20


@dataclass(frozen=True, slots=True)
class Look:
    """The rule of one request (nats, tokens)."""

    threshold: float
    """A step is an alarm if its smallest KL to an earlier step is at most this."""
    k: int
    """Number of candidates that are probed one step ahead, at most `MAX_CANDIDATES`."""
    window: int
    """How many of the reference's last steps are compared with; 0: all of them."""
    reference: Reference
    greedy: bool
    """Whether a step without an alarm takes the likeliest token instead of sampling."""


def prefix_end(prompt: int) -> int:
    """One past the last position of the prefix.

    The last token of the prompt predicts the first token of the answer, so its distribution belongs
    to the answer; a prompt of one token is the exception, having no other.
    """
    return max(prompt - 1, 1)


class LookState(IntEnum):
    """The outcome of a step."""

    CLEAR = 0
    ALARM = 1
    """Its token is taken back: the candidates are probed first."""
    CHOSEN = 2
    """The candidates have been probed; the token is one of them."""


class LookRow(NamedTuple):
    """The engine's report of one step of look-back decoding."""

    kl_min: float
    """Smallest KL to an earlier step (nats); infinite if there is none."""
    nearest: int
    """Position of that step in prompt and answer: the token it predicted; 0 if there is none."""
    state: LookState
    tokens: tuple[int, ...]
    """Token ids of the candidates; none in a clear step."""
    kls: tuple[float, ...]
    """Their smallest KL to the prefix (nats), in the same order, once they have been probed."""

    def flat(self) -> tuple[float, ...]:
        """The row as numbers."""
        return (self.kl_min, self.nearest, self.state, *self.tokens, *self.kls)

    @classmethod
    def read(cls, values: Sequence[float]) -> LookRow:
        """Inverse of `flat`."""
        kl_min, nearest, state, *rest = values
        count = len(rest) // 2 if state == LookState.CHOSEN else len(rest)
        return cls(
            kl_min,
            int(nearest),
            LookState(int(state)),
            tuple(int(token) for token in rest[:count]),
            tuple(rest[count:]),
        )
