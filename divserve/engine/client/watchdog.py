"""Detects an engine that hangs: its process is alive and has requests, but makes no progress.

While requests are under way, the engine is asked the same question repeatedly. It answers between
two steps, paused or not, whatever outputs it has to send. So an engine that leaves a question open
for longer than ``--engine-timeout`` hangs in a step. It is treated as dead, and its process killed.
Of several data-parallel ranks each is asked. Their coordinator, without which ranks that step
together would wait for each other, must be alive; vLLM itself only watches it for several API
processes.
"""

from __future__ import annotations

import asyncio
import logging
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from divserve.engine.client.tasks import Tasks
from divserve.errors import StartupError

__all__ = ["Watch", "add_flags", "checked", "watching"]

logger = logging.getLogger("vllm.divserve")

DEFAULT_S = 300.0
TICKS = 10
"""How often a silent engine is checked before it counts as dead."""
LONGEST_TICK_S = 5.0


def add_flags(parser: ArgumentParser) -> None:
    """Adds ``--engine-timeout`` to the parser of ``divserve serve``."""
    group: Any = parser.add_argument_group("divserve: engine")
    group.add_argument(
        "--engine-timeout",
        type=float,
        default=DEFAULT_S,
        metavar="SECONDS",
        help="An engine with requests that finishes no step for so long counts as dead; 0: never "
        f"(default: {DEFAULT_S:.0f}).",
    )


def checked(timeout_s: float) -> float:
    """The flag's value.

    Raises:
        StartupError: it is negative or not a number.
    """
    if not timeout_s >= 0:
        raise StartupError(f"--engine-timeout is at least 0, not {timeout_s}")
    return timeout_s


@contextmanager
def watching(client: Any, timeout_s: float) -> Iterator[None]:
    """Watches the engines of a `divserve.engine.client.guided.GuidedClient`.

    Args:
        client: the client; its small engine, if it has one, is watched too.
        timeout_s: longest silence; 0: nothing is watched.
    """
    engines = [(client.inner, client.large_works)] if timeout_s else []
    if timeout_s and client.small is not None:
        engines.append((client.small.inner, client.small_works))
    watches = [Watch(engine, busy, timeout_s) for engine, busy in engines]
    spawned = Tasks()
    tasks = [spawned.spawn(watch.run(), _blind) for watch in watches]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _blind(error: Exception) -> None:
    logger.error("An engine is watched no more: a hang would not be noticed", exc_info=error)


class Watch:
    """Watches one engine.

    Args:
        engine: vLLM's ``AsyncLLM``.
        busy: whether it has requests under way.
        timeout_s: longest silence.
        sleep: waits for a number of seconds.
    """

    def __init__(
        self,
        engine: Any,
        busy: Callable[[], bool],
        timeout_s: float,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._busy = busy
        self._timeout_s = timeout_s
        self._sleep = sleep

    async def run(self) -> None:
        """Watches until the engine is dead."""
        # Counts ticks instead of reading the clock, which goes on while this process is suspended.
        tick_s = min(self._timeout_s / TICKS, LONGEST_TICK_S)
        question: asyncio.Task[None] | None = None
        silent_s = 0.0
        try:
            while not self._engine.errored:
                await self._sleep(tick_s)
                if self._lacks_coordinator():
                    self._give_up("has lost the coordinator of its ranks")
                elif question is not None and not question.done():
                    silent_s += tick_s if self._busy() else 0.0
                    if silent_s >= self._timeout_s:
                        self._give_up(f"has finished no step for {self._timeout_s:g} s")
                elif self._busy():
                    question, silent_s = asyncio.ensure_future(self._ask()), 0.0
        finally:
            if question is not None:
                question.cancel()

    async def _ask(self) -> None:
        # An error also counts as an answer.
        with suppress(Exception):
            await self._engine.engine_core.is_scheduler_paused_async()

    def _lacks_coordinator(self) -> bool:
        coordinator = getattr(self._engine.engine_core.resources, "coordinator", None)
        return (
            coordinator is not None
            and coordinator.proc.exitcode is not None
            and not self._engine.errored
        )

    def _give_up(self, why: str) -> None:
        """Does what vLLM does when an engine's process is gone, then kills the process."""
        from vllm.utils.system_utils import kill_process_tree
        from vllm.v1.engine.exceptions import EngineDeadError

        name = self._engine.model_config.served_model_name
        logger.error("The engine of %s %s: it is ended", name, why)
        core = self._engine.engine_core
        core.resources.engine_dead = True
        # Ends vLLM's output handler, which passes the error to the requests.
        core.outputs_queue.put_nowait(EngineDeadError())
        # With several API processes none owns the engine: their parent ends it when one exits.
        for process in getattr(core.resources.engine_manager, "processes", ()):
            # A process that hangs may not handle any other signal.
            kill_process_tree(process.pid)
