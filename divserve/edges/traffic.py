"""Requests in progress: counted by request, client and row, and awaited when the server drains."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from divserve.errors import TooManyRequests

__all__ = ["Ticket", "Traffic", "queue_full"]

RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class Ticket:
    """One request in progress."""

    client: str | None
    """The client whose limit it counts against, if any."""
    rows: int
    """Rows of the engine's batch that it will take; 1 until its body has been read."""


class Traffic:
    """The requests of this process, from the first header to the last byte of the answer.

    Args:
        most_rows: how many may be in progress before requests are rejected.
    """

    def __init__(self, most_rows: float = math.inf) -> None:
        self.most_rows = most_rows
        self.draining = False
        """Whether new requests are rejected."""
        self.rows = 0
        self.of_client: Counter[str] = Counter()
        self._requests = 0
        self._changed = asyncio.Event()
        self._hurried = False

    def __len__(self) -> int:
        """Requests in progress."""
        return self._requests

    def enter(self, client: str | None, rows: int) -> Ticket:
        """Counts a request until it leaves."""
        self._requests += 1
        self.rows += rows
        if client is not None:
            self.of_client[client] += 1
        return Ticket(client, rows)

    def leave(self, ticket: Ticket) -> None:
        """Stops counting it."""
        self._requests -= 1
        self.rows -= ticket.rows
        if ticket.client is not None:
            self.of_client[ticket.client] -= 1
            if not self.of_client[ticket.client]:
                del self.of_client[ticket.client]
        self._changed.set()

    def weigh(self, ticket: Ticket, rows: int) -> None:
        """Counts the rows that it turned out to need.

        Raises:
            TooManyRequests: it needs more rows than it was admitted with, and others that came at
                the same time have filled the queue.
        """
        if rows > ticket.rows and self.rows - ticket.rows >= self.most_rows:
            raise queue_full()
        self.rows += rows - ticket.rows
        ticket.rows = rows

    def hurry(self) -> None:
        """Stops waiting for requests in progress."""
        self._hurried = True
        self._changed.set()

    async def empty(self, timeout_s: float, *, hurried: bool = False) -> bool:
        """Waits until no request is in progress; False if that takes too long.

        Args:
            timeout_s: how long is too long.
            hurried: wait that long even if `hurry` was called.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._requests and (hurried or not self._hurried):
                    self._changed.clear()
                    await self._changed.wait()
        return not self._requests


def queue_full() -> TooManyRequests:
    """The error for requests that would wait too long."""
    return TooManyRequests(
        "The server is busy: its queue is full. Try again later.",
        code="queue_full",
        retry_after_s=RETRY_AFTER_S,
    )
