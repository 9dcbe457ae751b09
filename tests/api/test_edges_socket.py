"""The edges behind a real socket, without an engine: what a network client sees."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.support.edges import Call, small_app
from tests.support.socket_server import listening

MEGABYTE = 1024 * 1024
REFUSED_WITHIN_S = 0.05
BODY_TIMEOUT_S = 0.3
DRIP_EVERY_S = 0.02
CUT_OFF_WITHIN_S = 20


@contextmanager
def served(**flags: Any) -> Iterator[tuple[str, Any]]:
    """Address and state of a small app in a thread."""
    app = small_app(**flags)
    with listening(app) as (host, port):
        yield f"http://{host}:{port}", app.state


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * MEGABYTE


def test_an_upload_that_is_too_large_is_told_so() -> None:
    """With a length or in chunks: the client finishes, reads the 413, and may ask again."""
    with served(max_body_bytes=MEGABYTE) as (url, state), httpx2.Client(base_url=url) as http:
        for content in (b"x" * 20 * MEGABYTE, pieces(20)):
            response = http.post("/echo", content=content)
            assert response.status_code == 413
            assert response.json()["error"]["code"] == "request_too_large"
            assert response.headers["x-request-id"]
        assert state.asked == 0
        assert http.post("/echo", content=pieces(1)).json() == {"bytes": MEGABYTE}


def test_refusals_are_quick_while_streams_run() -> None:
    with served(rows=8, max_queue=0) as (url, state), httpx2.Client(base_url=url) as http:
        streams = [http.send(http.build_request("POST", "/wait/1"), stream=True) for _ in range(8)]
        took = []
        for _ in range(50):
            start = time.perf_counter()
            response = http.post("/echo", content=b"x" * 100_000)
            took.append(time.perf_counter() - start)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
        assert sorted(took)[25] < REFUSED_WITHIN_S
        for stream in streams:
            stream.close()
        deadline = time.monotonic() + 5
        while state.traffic.rows and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(state.traffic) == state.traffic.rows == 0
        assert http.post("/echo").status_code == 200


def test_a_body_that_never_comes_is_counted_until_the_client_leaves() -> None:
    with served() as (url, state):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
            deadline = time.monotonic() + 5
            while not len(state.traffic) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(state.traffic) == 1
        while len(state.traffic) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(state.traffic) == 0


def drip(url: str, head: bytes) -> tuple[bytes, float]:
    """The answer to a client that sends bytes slowly until it is cut off, and the seconds taken."""
    host, port = url.removeprefix("http://").split(":")
    start = time.monotonic()
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(DRIP_EVERY_S)
        connection.sendall(head)
        answer = b""
        while time.monotonic() - start < CUT_OFF_WITHIN_S:
            try:
                if not (piece := connection.recv(65536)):
                    return answer, time.monotonic() - start
                answer += piece
            except TimeoutError:
                connection.sendall(b"x")
    raise AssertionError(f"the connection stays open; so far: {answer!r}")


def test_a_body_that_comes_too_slowly() -> None:
    """Each byte comes in time but the whole does not: the client gets a 408, the row is free."""
    with served(body_timeout=BODY_TIMEOUT_S) as (url, state):
        answer, took = drip(url, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert took >= BODY_TIMEOUT_S
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in head.lower()
        error = json.loads(body)["error"]
        assert "--body-timeout" in error.pop("message")
        assert error == {"type": "invalid_request_error", "param": None, "code": "request_timeout"}
        assert len(state.traffic) == state.traffic.rows == state.asked == 0
        assert httpx2.post(f"{url}/echo", content=b"abc").json() == {"bytes": 3}


def test_a_body_that_stops_coming() -> None:
    async def test() -> None:
        app = small_app(rows=1, max_queue=0, body_timeout=BODY_TIMEOUT_S)
        call = Call(app, "/echo", b"x", stalls=True)
        await asyncio.sleep(0)
        assert await Call(app, "/echo").ended() == 429
        assert await call.ended() == 408
        assert call.headers["connection"] == "close"
        assert await Call(app, "/echo").ended() == 200

    asyncio.run(test())


@pytest.mark.parametrize(
    ("trusted", "clients"),
    [(None, 2), ("127.0.0.1", 2), ("10.9.0.0/16", 1), ("*", 2)],
    ids=["default", "this machine", "another machine", "all"],
)
def test_a_proxy_is_believed_if_it_is_trusted(
    trusted: str | None, clients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks is read from X-Forwarded-For: from this machine by default."""
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with served(rate_limit="1/hour") as (url, _):
        statuses = [
            httpx2.post(f"{url}/echo", headers={"X-Forwarded-For": address}).status_code
            for address in ("203.0.113.1", "203.0.113.2", "203.0.113.1")
        ]
    assert statuses.count(200) == clients
