"""How many rows of the engine's batch the lines of batches may take.

Clients that wait for an answer come first: a line begins only while their requests and all lines
fit into the engine together. Lines are not counted among the requests of clients, so a client
never gets a 429 because of them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from divserve.errors import TooManyRequests

__all__ = ["Room", "Share"]

LOOK_S = 0.05
"""How often a line that waits looks whether requests of clients have ended."""


class Rows(Protocol):
    """The requests of clients (`divserve.edges.traffic`)."""

    rows: int


class Room:
    """The rows that lines take.

    Args:
        clients: the requests of clients in this process.
        capacity: rows that the engine runs at the same time.
        limit: most rows of lines; half of the capacity if None.
    """

    def __init__(self, clients: Rows, capacity: int, limit: int | None) -> None:
        self.rows = 0
        self.limit = max(1, min(limit or capacity // 2, capacity))
        self.paused = False
        """Whether no line may begin, because there is no room for its answer on the disk."""
        self._clients = clients
        self._capacity = capacity
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def take(self, rows: int) -> Share:
        """Waits until there is room, in the order of asking.

        Args:
            rows: how many; more than the limit are admitted when there is no other line.
        """
        async with self._turn:
            while not self._fits(rows):
                self._freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._freed.wait()
            return Share(self, rows)

    def _fits(self, rows: int) -> bool:
        if self.paused or self._clients.rows >= self._capacity:
            return False
        if not self.rows:
            return True
        together = self.rows + rows
        return together <= self.limit and self._clients.rows + together <= self._capacity

    def add(self, rows: int) -> None:
        """Counts rows; fewer than 0 are given back."""
        self.rows += rows
        if rows < 0:
            self._freed.set()


class Share:
    """The rows of one line.

    Args:
        room: where they are counted.
        rows: how many are thought to be needed.
    """

    def __init__(self, room: Room, rows: int) -> None:
        self.asked = 1
        """How many the line turned out to need."""
        self._room, self._rows = room, rows
        room.add(rows)

    def weigh(self, rows: int) -> None:
        """Told of the rows that the line needs, as the edges and then the route count them.

        Raises:
            TooManyRequests: there is no room for that many now; take `asked` and begin again.
        """
        self.asked = max(self.asked, rows)
        more = rows - self._rows
        if more <= 0:
            return
        others = self._room.rows - self._rows
        if others and self._room.rows + more > self._room.limit:
            raise TooManyRequests("The line waits for room.", code="queue_full")
        self._room.add(more)
        self._rows = rows

    def release(self) -> int:
        """Gives the rows back, and tells how many they were."""
        had, self._rows = self._rows, 0
        self._room.add(-had)
        return had
