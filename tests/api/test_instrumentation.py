"""The outermost middleware on its own: what passes it, and how broken responses are counted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from divserve.api.instrumentation import Instrumentation
from divserve.api.record import RECORD, Record
from tests.support.metrics import Changes


@pytest.fixture
def changes() -> Changes:
    """What the registry has counted since the test began."""
    return Changes(lambda: generate_latest(REGISTRY).decode())


def test_messages_that_are_no_answer_yet_pass(changes: Changes) -> None:
    """ASGI's early hints come before the status and do not contain it."""
    hint = {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]}
    start = {"type": "http.response.start", "status": 200, "headers": []}
    messages = [hint, start, {"type": "http.response.body", "body": b"ok"}]
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[RECORD].method = "cad"
        for message in messages:
            await send(message)

    async def send(message: Any) -> None:
        sent.append(message)

    owner: Any = SimpleNamespace(router=SimpleNamespace(routes=[]))
    scope = {"type": "http", "method": "GET", "path": "/hint", "headers": []}
    asyncio.run(Instrumentation(app, owner)(scope, receive=None, send=send))  # type: ignore[arg-type]
    assert sent == messages
    assert changes.of("requests_total", method="cad", outcome="ok") == 1


def test_a_sink_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The answer has been sent and stays whole; the other sinks run, and the log has the error."""
    told: list[str] = []

    def fails(record: Record, route: str) -> None:
        raise ValueError("cannot be written")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(message: Any) -> None:
        told.append(message["type"])

    owner: Any = SimpleNamespace(router=SimpleNamespace(routes=[]))
    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    sinks = [fails, lambda record, route: told.append(route)]
    with caplog.at_level("ERROR", logger="vllm.divserve.api"):
        asyncio.run(Instrumentation(app, owner, sinks)(scope, receive=None, send=send))  # type: ignore[arg-type]
    assert told == ["http.response.start", "http.response.body", "other"]
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("fault", "sent", "status"),
    [
        (RuntimeError("a defect"), 0, "500"),
        (RuntimeError("a defect"), 2, "200"),
        (OSError("broken pipe"), 2, "499"),
        (asyncio.CancelledError(), 1, "200"),
    ],
)
def test_whatever_cuts_a_response_off(
    changes: Changes, fault: BaseException, sent: int, status: str
) -> None:
    """Each has one status and is not ok: a bug, a broken connection, a shutdown."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[RECORD].method = "cad"
        for message in (
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"data: {}", "more_body": True},
        )[:sent]:
            await send(message)
        if not isinstance(fault, OSError):
            raise fault

    async def send(message: Any) -> None:
        if isinstance(fault, OSError) and message["type"].endswith("body"):
            raise fault

    owner: Any = SimpleNamespace(router=SimpleNamespace(routes=[]))
    scope = {"type": "http", "method": "GET", "path": "/cut", "headers": []}

    async def ask() -> None:
        with pytest.raises(type(fault)):
            await Instrumentation(app, owner)(scope, receive=None, send=send)  # type: ignore[arg-type]

    asyncio.run(ask())
    outcome = "aborted" if status == "499" else "failed"
    assert changes.of("requests_total", method="cad", outcome=outcome) == 1
    assert changes.of("http_requests_total", route="other", method="GET", status=status) == 1


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (b'data: {"error": {"message": "m", "type": "server_error", "code": "x"}}\n\n', "failed"),
        (b'event: error\ndata: {"type": "error", "error": {"message": "m"}}\n\n', "failed"),
        (b'event: error\ndata: {"type": "error", "code": "shutting_down"}\n\n', "failed"),
        (b'event: error\ndata: {"type": "error", "code": "invalid_value"}\n\n', "client_error"),
        (b"event: error\ndata: [1]\n\n", "ok"),
        (b'event: error\ndata: {"type"', "ok"),
        (b'event: error_free\ndata: {"error": {}}\n\n', "ok"),
    ],
)
def test_errors_in_a_stream(changes: Changes, event: bytes, outcome: str) -> None:
    """Of chats, of Anthropic's messages and of Responses."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[RECORD].method = "cad"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": event})

    async def send(message: Any) -> None:
        return None

    owner: Any = SimpleNamespace(router=SimpleNamespace(routes=[]))
    scope = {"type": "http", "method": "POST", "path": "/stream", "headers": []}
    asyncio.run(Instrumentation(app, owner)(scope, receive=None, send=send))  # type: ignore[arg-type]
    assert changes.of("requests_total", method="cad", outcome=outcome) == 1
