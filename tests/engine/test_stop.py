"""How the server stops on signals to this process, with a client and a server that only record."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.edges.flags import EdgeSettings
from divserve.edges.keys import KeyRing
from divserve.edges.traffic import Traffic
from divserve.startup import shutdown


class Client:
    def __init__(self, traffic: Traffic, tickets: list[Any]) -> None:
        self.done: list[str] = []
        self._traffic, self._tickets = traffic, tickets

    async def end_requests(self) -> None:
        self.done.append("ended")
        for ticket in self._tickets:
            self._traffic.leave(ticket)

    def shutdown(self, timeout: float | None = None) -> None:
        self.done.append(f"shut down in {timeout}")


def running(requests: int, **settings: Any) -> Any:
    """The state of an app with so many requests in progress."""
    traffic = Traffic()
    tickets = [traffic.enter("a", 1) for _ in range(requests)]
    state = SimpleNamespace(
        traffic=traffic,
        edges=EdgeSettings(**settings),
        keys=None,
        engine_client=Client(traffic, tickets),
        server=SimpleNamespace(
            should_exit=False, config=SimpleNamespace(timeout_graceful_shutdown=5)
        ),
        tickets=tickets,
    )
    return SimpleNamespace(state=state)


def run(test: Coroutine[Any, Any, None]) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        asyncio.run(asyncio.wait_for(test, 20))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def stopped(state: Any) -> None:
    while not state.server.should_exit:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_may_finish(number: signal.Signals) -> None:
    async def test() -> None:
        app = running(2)
        state = app.state
        shutdown.take_signals(app, 30)
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        assert state.traffic.draining
        assert not state.server.should_exit
        for ticket in state.tickets:
            state.traffic.leave(ticket)
        await stopped(state)
        assert state.engine_client.done == ["shut down in 5.0"]
        assert state.server.config.timeout_graceful_shutdown == 5

    run(test())


def test_the_rest_is_ended_when_the_time_is_up() -> None:
    async def test() -> None:
        app = running(2)
        shutdown.take_signals(app, 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        await stopped(app.state)
        assert app.state.engine_client.done == ["ended", "shut down in 5.0"]

    run(test())


def test_a_second_signal_ends_at_once() -> None:
    async def test() -> None:
        app = running(2)
        shutdown.take_signals(app, 60)
        start = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        await stopped(app.state)
        assert time.monotonic() - start < 5
        assert app.state.engine_client.done == ["ended", "shut down in 5.0"]
        assert app.state.server.config.timeout_graceful_shutdown == 1

    run(test())


def test_sighup_reads_the_keys_again(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "keys"
        path.write_text("old")
        app = running(0, api_key_file=path)
        app.state.keys = KeyRing(file=path)
        app.state.keys.name_of(b"old")
        shutdown.take_signals(app, 60)
        path.write_text("newer")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert app.state.keys.name_of(b"newer")
        assert not app.state.traffic.draining

    run(test())
