"""Requests that are always accepted cost almost nothing: bodies sent to probes are not read."""

from __future__ import annotations

import asyncio

import pytest
from starlette._utils import get_route_path

from divserve.http.paths import path_of
from tests.support.edges import Call, small_app


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/ping", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_a_body_sent_to_a_probe_is_not_read_without_a_key(path: str, method: str) -> None:
    async def ask() -> Call:
        app = small_app(["sk-1"], metrics_without_key=True)
        call = Call(app, path, b"x" * 100, method=method)
        assert await call.ended() == 401
        return call

    assert asyncio.run(ask()).read == 0


def test_nor_is_it_read_where_there_are_no_keys() -> None:
    """The route is asked whether it takes the method; the body is not."""

    async def test() -> None:
        app = small_app(rows=1, max_queue=0)
        answer = Call(app, "/wait/1")
        await answer.started()
        refused = Call(app, "/health", b"x" * 100)
        assert await refused.ended() == 405
        assert refused.read == 0
        assert await Call(app, "/health", method="GET").ended() == 200
        app.state.gate.set()
        await answer.task

    asyncio.run(test())


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("", "/health"), ("/", "/health"), ("/", "/"), ("/app", "/app/health"), ("/app", "/app"),
        ("/app", "/health"), ("/app", "/application/health"), ("/app/", "/app/health"),
        ("/v", "/v1/models"),
    ],
)  # fmt: skip
def test_paths_are_those_of_the_routes(root: str, path: str) -> None:
    """If routes and edges disagreed on a path, a probe could need a key, or a route none."""
    scope = {"type": "http", "path": path, "root_path": root}
    assert path_of(scope) == get_route_path(scope)
