"""How the server stops: it rejects new requests, finishes those under way, then ends the rest."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from typing import Any

from divserve.edges.traffic import Traffic

__all__ = ["take_signals"]

logger = logging.getLogger("vllm.divserve")

LAST_WORDS_S = 2.0
"""Longest wait for error events to be sent."""
ENGINE_STOP_S = 5.0
"""Longest wait for idle engines to stop; with a wait of 0 vLLM kills them at once."""
HURRIED_CLOSE_S = 1
"""Longest wait for open connections after a second signal."""


def take_signals(app: Any, drain_timeout_s: float) -> None:
    """SIGTERM and SIGINT drain, a second one ends the server at once; SIGHUP reloads the API keys.

    Args:
        app: the app that ``serve_http`` runs.
        drain_timeout_s: longest wait for the answers under way.
    """
    loop = asyncio.get_running_loop()
    traffic: Traffic = app.state.traffic
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        if traffic.draining:
            traffic.hurry()
            # Not force_exit: with it uvicorn leaves the app's lifespan behind, with a traceback.
            app.state.server.config.timeout_graceful_shutdown = HURRIED_CLOSE_S
            return
        traffic.draining = True
        tasks.add(loop.create_task(_stop(app, traffic, drain_timeout_s)))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if app.state.edges.api_key_file is not None:
        loop.add_signal_handler(signal.SIGHUP, app.state.keys.reload)


async def _stop(app: Any, traffic: Traffic, drain_timeout_s: float) -> None:
    client = app.state.engine_client
    logger.info("Draining: %d requests, at most %g s", len(traffic), drain_timeout_s)
    if not await traffic.empty(drain_timeout_s):
        logger.warning("Ending %d requests that are still under way", len(traffic))
        await client.end_requests()
        await traffic.empty(LAST_WORDS_S, hurried=True)
    stop_engines = partial(client.shutdown, timeout=ENGINE_STOP_S)
    await asyncio.get_running_loop().run_in_executor(None, stop_engines)
    app.state.server.should_exit = True
