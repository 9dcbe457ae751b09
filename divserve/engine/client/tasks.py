"""Tasks that nobody awaits: each says who hears of its error, because asyncio tells nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """Keeps tasks until they end; asyncio alone may collect them while they run."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(
        self, work: Coroutine[Any, Any, None], failed: Callable[[Exception], object]
    ) -> asyncio.Task[None]:
        """Starts a task.

        Args:
            work: what it does.
            failed: called with an error that ends it.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, failed))
        return task

    def _ended(self, failed: Callable[[Exception], object], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            failed(error)
