"""How often a client may send requests, and what it is told about its limits."""

from __future__ import annotations

import time
from dataclasses import dataclass

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from divserve.errors import StartupError

__all__ = ["Allowance", "Rates", "parse"]

TIDY_EVERY_S = 60.0


def parse(rate: str) -> list[RateLimitItem]:
    """The limits that a flag describes.

    Raises:
        StartupError: it describes none.
    """
    try:
        items = parse_many(rate)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise StartupError(f'--rate-limit is like "600/minute", not {rate!r}')
    return items


@dataclass(frozen=True)
class Allowance:
    """How many requests a client may still send."""

    granted: bool
    limit: int
    remaining: int
    reset_s: float
    """Seconds until one more request is allowed."""
    rate: str = ""
    """The limit and its window, such as "600 per 1 minute"."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The allowance as OpenAI's headers."""
        told = {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _duration(self.reset_s),
        }
        return [(name.encode(), value.encode()) for name, value in told.items()]


class Rates:
    """Counts the requests of each client in moving windows, in this process's memory.

    Args:
        rate: such as ``600/minute``; several, separated by ``;``, all apply.
    """

    def __init__(self, rate: str) -> None:
        self._items = parse(rate)
        self._storage = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._next_tidying = time.monotonic() + TIDY_EVERY_S

    def ask(self, client: str) -> Allowance:
        """Counts a request of `client` and returns its allowance under the tightest limit."""
        self._tidy()
        granted = all(self._limiter.test(item, client) for item in self._items)
        if granted:
            for item in self._items:
                self._limiter.hit(item, client)
        return min(
            (self._of(item, client, granted) for item in self._items),
            key=lambda allowance: (allowance.remaining, -allowance.reset_s),
        )

    def _tidy(self) -> None:
        """Forgets clients whose windows are empty: the library keeps their names forever."""
        if time.monotonic() < self._next_tidying:
            return
        self._next_tidying = time.monotonic() + TIDY_EVERY_S
        for name in [name for name, requests in self._storage.events.items() if not requests]:
            self._storage.clear(name)

    def _of(self, item: RateLimitItem, client: str, granted: bool) -> Allowance:
        stats = self._limiter.get_window_stats(item, client)
        reset_s = max(0.0, stats.reset_time - time.time())
        return Allowance(granted, item.amount, stats.remaining, reset_s, str(item))


def _duration(seconds: float) -> str:
    """A duration as OpenAI writes it: 120ms, 1.5s, 6m0s."""
    if (milliseconds := round(seconds * 1000)) < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"
