"""How the server stops: it rejects new requests, finishes those under way, then ends the rest.

Whatever fails or hangs on the way, the process leaves: a step is tried although the one before it
has failed, and one deadline for all of them ends the process (`divserve.startup.leaving`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable
from functools import partial
from typing import Any

from divserve.edges.traffic import Traffic
from divserve.startup.leaving import LastResort

__all__ = ["OVERHEAD_S", "Stopping"]

logger = logging.getLogger("vllm.divserve")

LAST_WORDS_S = 2.0
"""Longest wait for error events to be sent."""
ENGINE_STOP_S = 5.0
"""Longest wait for idle engines to stop; with a wait of 0 vLLM kills them at once."""
HURRIED_CLOSE_S = 1
"""Longest wait for open connections after a second signal."""
OVERHEAD_S = 25.0
"""Longest time for all that follows the drain: last words, two engines, open connections. An
orchestrator is to wait 30 seconds longer than the drain."""


class Stopping:
    """The end of a server, begun by a signal."""

    def __init__(self) -> None:
        self.failed = False
        """Whether a step of the shut-down has raised an error."""
        self.last_resort = LastResort()
        self._tasks: set[asyncio.Task[None]] = set()

    def take_signals(self, app: Any, drain_timeout_s: float) -> None:
        """SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reloads the API keys.

        Args:
            app: the app that ``serve_http`` runs.
            drain_timeout_s: longest wait for the answers under way.
        """
        loop = asyncio.get_running_loop()
        traffic: Traffic = app.state.traffic

        def stop() -> None:
            if traffic.draining:
                traffic.hurry()
                self.last_resort.within(OVERHEAD_S)
                # Not force_exit: with it uvicorn leaves the lifespan behind, with a traceback.
                app.state.server.config.timeout_graceful_shutdown = HURRIED_CLOSE_S
                return
            traffic.draining = True
            self.last_resort.within(drain_timeout_s + OVERHEAD_S)
            self._tasks.add(loop.create_task(self._stop(app, traffic, drain_timeout_s)))

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        if app.state.edges.api_key_file is not None:
            loop.add_signal_handler(signal.SIGHUP, app.state.keys.reload)

    async def _stop(self, app: Any, traffic: Traffic, drain_timeout_s: float) -> None:
        client = app.state.engine_client
        logger.info("Draining: %d requests, at most %g s", len(traffic), drain_timeout_s)
        try:
            if not await traffic.empty(drain_timeout_s):
                logger.warning("Ending %d requests that are still under way", len(traffic))
                await self._attempt("end all requests", client.end_requests())
                await traffic.empty(LAST_WORDS_S, hurried=True)
            stop_engines = partial(client.shutdown, timeout=ENGINE_STOP_S)
            stopped = asyncio.get_running_loop().run_in_executor(None, stop_engines)
            await self._attempt("stop the engines", stopped)
        finally:
            app.state.server.should_exit = True

    async def _attempt(self, what: str, work: Awaitable[None]) -> None:
        """Waits for a step; an error is logged, and the next step follows all the same."""
        try:
            await work
        except Exception:
            self.failed = True
            logger.exception("Could not %s; the server leaves all the same", what)
