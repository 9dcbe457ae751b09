"""What passes the edges unchanged: other kinds of connections, and paths below a root path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from divserve.edges.admission import Admission
from divserve.edges.auth import RequireKey
from divserve.edges.body import GuardBody
from divserve.edges.flags import EdgeSettings
from divserve.edges.keys import KeyRing
from divserve.edges.request_id import RequestIds
from divserve.edges.shape import ShapeErrors
from divserve.edges.traffic import Traffic
from divserve.http.paths import path_of
from tests.support.edges import Call, small_app

SETTINGS = EdgeSettings()
EDGES = {
    "request_id": RequestIds,
    "shape": ShapeErrors,
    "auth": lambda app: RequireKey(app, KeyRing(["sk-1"])),
    "admission": lambda app: Admission(app, Traffic(), SETTINGS),
    "body": lambda app: GuardBody(app, SETTINGS),
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_start_and_the_end_of_a_server_pass(edge: str) -> None:
    passed: list[Any] = []

    async def app(*messages: Any) -> None:
        passed.append(messages)

    given: tuple[Any, ...] = ({"type": "lifespan"}, object(), object())
    asyncio.run(EDGES[edge](app)(*given))  # type: ignore[no-untyped-call,operator]
    assert passed == [given]
    assert passed[0][0] == {"type": "lifespan"}


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/live"}, "/live"),
        ({"path": "/api/live", "root_path": ""}, "/api/live"),
        ({"path": "/api/live", "root_path": "/api"}, "/live"),
        ({"path": "/live", "root_path": "/api"}, "/live"),
        ({"path": "/api/api/live", "root_path": "/api"}, "/api/live"),
        ({"path": "/live/api", "root_path": "/api"}, "/live/api"),
    ],
)
def test_paths_below_the_root(scope: dict[str, str], path: str) -> None:
    assert path_of(scope) == path


def test_only_the_probes_are_open_below_a_root() -> None:
    async def test() -> None:
        app = small_app(["sk-1"])
        for path, status in (("/api/live", 200), ("/api/v1/models", 401)):
            call = Call(app, path, method="GET", root_path="/api")
            assert await call.ended() == status

    asyncio.run(test())


@pytest.mark.parametrize("status", [200, 399, 400, 401, 500])
@pytest.mark.parametrize("named", [True, False])
def test_an_answer_without_headers_or_bodies(status: int, named: bool) -> None:
    """ASGI allows both to be omitted; an id is added, and an error gets OpenAI's shape."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["state"]["divserve.request_id"] == "me-7"
        assert [value for name, value in scope["headers"] if name == b"x-request-id"] == [b"me-7"]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"X-Request-Id", b"vllms"), (b"x-pot", b"tea")] if named else []
    scope = {"type": "http", "path": "/", "headers": [(b"x-request-id", b"me-7")]}
    asyncio.run(RequestIds(ShapeErrors(app))(scope, receive=None, send=send))  # type: ignore[arg-type]
    start, body = sent
    assert start["status"] == status
    ids = [value for name, value in start["headers"] if name.lower() == b"x-request-id"]
    assert ids == [b"me-7"]
    assert ((b"x-pot", b"tea") in start["headers"]) is named
    assert (b'"error"' in body.get("body", b"")) is (status >= 400)
