"""How the server stops on signals to this process, with a client and a server that only record."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.edges.flags import EdgeSettings
from divserve.edges.keys import KeyRing
from divserve.edges.traffic import Traffic
from divserve.startup import launch, leaving, shutdown
from tests.support.fake_client import arguments


class Client:
    """Records what it is asked for; `fails` are the calls that raise after that."""

    def __init__(self, traffic: Traffic, tickets: list[Any]) -> None:
        self.done: list[str] = []
        self.fails: set[str] = set()
        self._traffic, self._tickets = traffic, tickets

    async def end_requests(self) -> None:
        self.done.append("ended")
        if "end_requests" in self.fails:
            raise RuntimeError("a socket is closed")
        for ticket in self._tickets:
            self._traffic.leave(ticket)

    def shutdown(self, timeout: float | None = None) -> None:
        self.done.append(f"shut down in {timeout}")
        if "shutdown" in self.fails:
            raise RuntimeError("no such process")


class LastResort(leaving.LastResort):
    """Records the times that it is given, and leaves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def within(self, seconds: float) -> None:
        self.times.append(seconds)


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


def take_signals(app: Any, drain_timeout_s: float) -> Any:
    """What handles the signals for an app."""
    stopping = shutdown.Stopping()
    stopping.last_resort = LastResort()
    stopping.take_signals(app, drain_timeout_s)
    return stopping


async def stopped(state: Any) -> None:
    while not state.server.should_exit:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_may_finish(number: signal.Signals) -> None:
    async def test() -> None:
        app = running(2)
        state = app.state
        stopping = take_signals(app, 30)
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        assert state.traffic.draining
        assert not state.server.should_exit
        for ticket in state.tickets:
            state.traffic.leave(ticket)
        await stopped(state)
        assert state.engine_client.done == ["shut down in 5.0"]
        assert state.server.config.timeout_graceful_shutdown == 5
        assert not stopping.failed
        assert stopping.last_resort.times == [30 + shutdown.OVERHEAD_S]

    run(test())


def test_the_rest_is_ended_when_the_time_is_up() -> None:
    async def test() -> None:
        app = running(2)
        take_signals(app, 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        await stopped(app.state)
        assert app.state.engine_client.done == ["ended", "shut down in 5.0"]

    run(test())


def test_a_second_signal_ends_at_once() -> None:
    async def test() -> None:
        app = running(2)
        stopping = take_signals(app, 60)
        start = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        await stopped(app.state)
        assert time.monotonic() - start < 5
        assert app.state.engine_client.done == ["ended", "shut down in 5.0"]
        assert app.state.server.config.timeout_graceful_shutdown == 1
        overhead = shutdown.OVERHEAD_S
        assert stopping.last_resort.times == [60 + overhead, overhead]

    run(test())


@pytest.mark.parametrize("fails", [{"end_requests"}, {"shutdown"}, {"end_requests", "shutdown"}])
def test_the_server_leaves_although_a_step_fails(
    fails: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(shutdown, "LAST_WORDS_S", 0.1)
    monkeypatch.setattr(shutdown.logger, "exception", lambda *call: logged.append(call))

    async def test() -> None:
        app = running(2)
        app.state.engine_client.fails = fails
        stopping = take_signals(app, 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        await stopped(app.state)
        assert app.state.engine_client.done == ["ended", "shut down in 5.0"]
        assert stopping.failed

    run(test())
    assert [call[0] for call in logged] == ["Could not %s; the server leaves all the same"] * len(
        fails
    )


def test_sighup_reads_the_keys_again(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "keys"
        path.write_text("old")
        app = running(0, api_key_file=path)
        app.state.keys = KeyRing(file=path)
        app.state.keys.name_of(b"old")
        take_signals(app, 60)
        path.write_text("newer")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert app.state.keys.name_of(b"newer")
        assert not app.state.traffic.draining

    run(test())


@pytest.mark.parametrize(
    ("failed", "dead", "draining", "code"),
    [
        (False, False, True, 0),
        (True, False, True, launch.DEAD),
        (False, True, False, launch.DEAD),
        (False, True, True, 0),
    ],
)
def test_the_exit_code(
    failed: bool, dead: bool, draining: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the code, a last resort is set before the engines are left."""
    app = running(0)
    app.state.traffic.draining = draining
    last_resort = LastResort()

    @asynccontextmanager
    async def engine(*_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(errored=dead)
        assert last_resort.times == [shutdown.OVERHEAD_S]

    async def build_app(*_: Any) -> Any:
        return app

    async def listen(*given: Any) -> Any:
        given[-1].failed = failed
        return asyncio.sleep(0)

    monkeypatch.setattr(launch, "guided_engine", engine)
    monkeypatch.setattr(launch, "listen", listen)
    monkeypatch.setattr(shutdown, "LastResort", lambda: last_resort)
    args = arguments()
    args.engine_timeout = 0.0
    with socket.socket() as sock:
        assert asyncio.run(launch._serve(build_app, "address", sock, args)) == code
