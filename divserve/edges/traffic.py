"""Requests in progress: counted by request, client and row, and awaited when the server drains."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from divserve.errors import TooManyRequests

__all__ = ["Ticket", "Traffic", "client_full", "queue_full"]

RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class Ticket:
    """One request in progress."""

    client: str | None
    """The client whose limit it counts against, if any."""
    rows: int
    """Rows of the engine's batch that it will take; 1 until its body has been read."""
    size: int = 0
    """Bytes of its body that have been read."""


class Traffic:
    """The requests of this process, from the first header to the last byte of the answer.

    Args:
        most_rows: how many may be in progress before requests are rejected.
        most_of_client: likewise, of one client.
        most_bytes: of bodies of requests in progress.
    """

    def __init__(
        self,
        most_rows: float = math.inf,
        most_of_client: float = math.inf,
        most_bytes: float = math.inf,
    ) -> None:
        self.most_rows = most_rows
        self.most_of_client = most_of_client
        self.most_bytes = most_bytes
        self.drain = asyncio.Event()
        """Set while new requests are rejected."""
        self.rows = 0
        self.of_client: Counter[str] = Counter()
        """Rows of each client."""
        self.size = 0
        """Bytes of all bodies."""
        self._requests = 0
        self._changed = asyncio.Event()
        self._hurried = False

    def __len__(self) -> int:
        """Requests in progress."""
        return self._requests

    @property
    def draining(self) -> bool:
        """Whether new requests are rejected."""
        return self.drain.is_set()

    @draining.setter
    def draining(self, value: bool) -> None:
        if value:
            self.drain.set()
        else:
            self.drain.clear()

    def enter(self, client: str | None, rows: int) -> Ticket:
        """Counts a request until it leaves."""
        self._requests += 1
        ticket = Ticket(client, 0)
        self._add(ticket, rows)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Stops counting it."""
        self._requests -= 1
        self._add(ticket, -ticket.rows)
        self.size -= ticket.size
        self._changed.set()

    def weigh(self, ticket: Ticket, rows: int) -> None:
        """Counts the rows that it turned out to need.

        Raises:
            TooManyRequests: it needs more rows than it was admitted with, and others that came at
                the same time have filled the queue; or its client has others under way, with which
                it has more rows than a client may have.
        """
        if rows > ticket.rows:
            if self.rows - ticket.rows >= self.most_rows:
                raise queue_full()
            others = 0 if ticket.client is None else self.of_client[ticket.client] - ticket.rows
            if others and others + rows > self.most_of_client:
                raise client_full(self.most_of_client)
        self._add(ticket, rows - ticket.rows)

    def hold(self, ticket: Ticket, size: int) -> None:
        """Counts bytes of its body until it leaves.

        Raises:
            TooManyRequests: the bodies of all requests have too many.
        """
        if self.size + size > self.most_bytes:
            raise queue_full()
        self.size += size
        ticket.size += size

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

    def _add(self, ticket: Ticket, rows: int) -> None:
        self.rows += rows
        ticket.rows += rows
        if ticket.client is not None:
            self.of_client[ticket.client] += rows
            if not self.of_client[ticket.client]:
                del self.of_client[ticket.client]


def client_full(most: float) -> TooManyRequests:
    """The error for requests of a client that has as many rows as it may have."""
    return TooManyRequests(
        f"Your requests take more than {most:.0f} rows (one for each prompt, choice and guide): "
        "wait until one has ended.",
        code="concurrency_limit_exceeded",
        retry_after_s=RETRY_AFTER_S,
    )


def queue_full() -> TooManyRequests:
    """The error for requests that would wait too long."""
    return TooManyRequests(
        "The server is busy: its queue is full. Try again later.",
        code="queue_full",
        retry_after_s=RETRY_AFTER_S,
    )
