"""Clients that do not read what they asked for, on a real socket."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import Mock

import pytest

from divserve.edges.slow_readers import LEAST_BYTES, protocol
from tests.support.fake_client import FakeClient
from tests.support.socket_server import listening

SEND_TIMEOUT_S = 0.3
FEW_BYTES = 4096
ENDS_WITHIN_S = 20
BODY = {
    "model": "smol", "prompt": "Hi", "n": 8, "max_tokens": 200, "logprobs": 5, "stream": True,
    "decoding": {"method": "cfg"},
}  # fmt: skip


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def asked(address: tuple[str, int], body: dict[str, Any]) -> Iterator[socket.socket]:
    """A connection with a small buffer, on which a completion was asked for."""
    data = json.dumps(body).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FEW_BYTES)
        connection.settimeout(ENDS_WITHIN_S)
        connection.connect(address)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        yield connection


@pytest.fixture
def ended(fake_engine: FakeClient, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Makes the engine's answers long; set once the engine was told that one has ended."""
    event, generate = threading.Event(), fake_engine.generate

    async def watched(*args: Any, **options: Any) -> AsyncIterator[Any]:
        try:
            async for output in generate(*args, **options):
                yield output
        finally:
            event.set()

    monkeypatch.setattr(fake_engine, "generate", watched)
    monkeypatch.setattr(fake_engine, "answer", fake_engine.answer[:1] * 200)
    return event


def test_a_client_that_reads_nothing_is_cut_off(
    app: Any, ended: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Its request ends in the engine, its rows are free, and its connection ends."""
    traffic = app.state.traffic
    logging.getLogger("vllm.divserve.edges").addHandler(caplog.handler)
    with (
        caplog.at_level(logging.INFO, "vllm.divserve.edges"),
        listening(app, SEND_TIMEOUT_S, FEW_BYTES) as address,
        asked(address, BODY) as connection,
    ):
        eventually(lambda: traffic.rows == 16)
        assert ended.wait(ENDS_WITHIN_S)
        eventually(lambda: traffic.rows == len(traffic) == 0)
        assert "--send-timeout" in caplog.text
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        assert b"[DONE]" not in answer
    logging.getLogger("vllm.divserve.edges").removeHandler(caplog.handler)


def test_a_client_that_reads_late_gets_it_all(app: Any, ended: threading.Event) -> None:
    with listening(app, ENDS_WITHIN_S, FEW_BYTES) as address, asked(address, BODY) as connection:
        eventually(lambda: app.state.traffic.rows == 16)
        time.sleep(SEND_TIMEOUT_S)
        assert not ended.is_set()
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += connection.recv(65536)
        assert b"data: [DONE]" in answer


class Transport:
    """What waits for a client, and whether its connection was cut."""

    waits = 0
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.waits

    def abort(self) -> None:
        self.aborted = True


def connection(transport: Transport) -> Any:
    """A connection whose loop keeps the timers that were set."""
    made: Any = object.__new__(protocol(5))
    made.transport, made.loop, made.flow = transport, Mock(), Mock()
    return made


def passes(made: Any) -> None:
    """The timeout of a connection passes."""
    delay, check, waited = made.loop.call_later.call_args[0]
    assert delay == 5
    check(waited)


def test_it_need_not_read_everything_at_once() -> None:
    """As little as uvicorn keeps is enough in each period; after that the count begins anew."""
    transport = Transport()
    made = connection(transport)
    transport.waits = 10 * LEAST_BYTES
    made.pause_writing()
    for left in (9, 8, 7):
        transport.waits = left * LEAST_BYTES
        passes(made)
    assert not transport.aborted
    transport.waits -= LEAST_BYTES - 1
    passes(made)
    assert transport.aborted


def test_a_timer_ends_with_its_pause() -> None:
    made = connection(Transport())
    made.resume_writing()
    made.pause_writing()
    timer = made.loop.call_later.return_value
    made.resume_writing()
    made.resume_writing()
    assert timer.cancel.call_count == 1
