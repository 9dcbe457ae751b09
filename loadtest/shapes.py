"""How many users there are at a time, as a function of the users and the length of the test."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SHAPES", "users_at"]

STEPS = 4
SPIKE = (0.4, 0.6)
"""When the spike begins and ends, as shares of the test."""
WARM_UP = 0.05


def _soak(part: float) -> float:
    return min(1.0, part / WARM_UP)


def _ramp(part: float) -> float:
    return part


def _step(part: float) -> float:
    return (math.floor(part * STEPS) + 1) / STEPS


def _spike(part: float) -> float:
    return 1.0 if SPIKE[0] <= part < SPIKE[1] else 0.25


SHAPES: dict[str, Callable[[float], float]] = {
    "soak": _soak,
    "ramp": _ramp,
    "step": _step,
    "spike": _spike,
}
"""Share of the users that are active, as a function of the share of the time that has passed."""


def users_at(shape: str, seconds: float, users: int, duration_s: float) -> int | None:
    """Number of users after some seconds, at least one; None when the test is over."""
    if seconds >= duration_s:
        return None
    # Without the rounding, 0.05 / 0.05 of 20 users may be 20.000000000000004.
    return max(1, math.ceil(round(SHAPES[shape](seconds / duration_s) * users, 6)))
