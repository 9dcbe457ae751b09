"""What the client makes of a server's answers: waits, failed lines, and the end of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from divserve.errors import StartupError
from divserve.scoring_file import client
from divserve.scoring_file.client import Refused, Server
from tests.support.socket_server import listening

ERROR = {"error": {"message": "No\nroom.", "type": "x", "param": "input", "code": "full"}}


class Script:
    """Answers in turn; the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = []
        self.keys: list[str | None] = []

    async def answer(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        status, body, headers = self.answers[0]
        if len(self.answers) > 1:
            del self.answers[0]
        return JSONResponse(body, status, headers)


@pytest.fixture(scope="module")
def script() -> Script:
    return Script()


@pytest.fixture(scope="module")
def url(script: Script) -> Iterator[str]:
    routes = [Route("/v1/{rest:path}", script.answer, methods=["GET", "POST"])]
    with listening(Starlette(routes=routes)) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture(autouse=True)
def waits(script: Script, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's own waits, which take no time; the package's are off."""
    monkeypatch.setattr(client, "RETRIES", 0)
    script.answers, script.keys = [], []
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(client, "asyncio", SimpleNamespace(sleep=sleep))
    return found


def asked(url: str, name: str, *args: Any, key: str | None = "secret") -> Any:
    async def ask() -> Any:
        server = Server(url, key)
        try:
            return await getattr(server, name)(*args)
        finally:
            await server.close()

    return asyncio.run(ask())


def test_it_waits_as_long_as_a_busy_server_says(
    url: str, script: Script, waits: list[float]
) -> None:
    busy = (429, ERROR, {"Retry-After": "3"})
    script.answers = [
        busy, (503, ERROR, {"Retry-After": "0"}), busy, (200, {"data": [], "usage": {}}, {}),
    ]  # fmt: skip
    assert asked(url, "score", {"input": "x"}) == {"data": [], "usage": {}}
    assert waits == [3, 0.1, 3]
    assert script.keys == ["Bearer secret"] * 4


@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (429, {"Retry-After": "601"}, ERROR, "No room. The same command goes on from here."),
        (429, {}, ERROR, "No room."),
        (503, {"Retry-After": "Wed, 21 Oct"}, ERROR, "No room."),
        (503, {"Retry-After": "inf"}, ERROR, "No room."),
        (401, {}, ERROR, "No room."),
        (502, {}, "gateway", "502"),
    ],
)
def test_what_ends_a_run(
    url: str, script: Script, status: int, headers: dict[str, str], body: Any, told: str
) -> None:
    script.answers = [(status, body, headers)]
    with pytest.raises(StartupError) as error:
        asked(url, "score", {"input": "x"})
    assert told in str(error.value)
    assert len(script.keys) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422, 500])
def test_what_fails_a_line(url: str, script: Script, status: int) -> None:
    script.answers = [(status, ERROR, {})]
    with pytest.raises(Refused) as refused:
        asked(url, "score", {"input": "x"})
    assert refused.value.error == {"message": "No room.", "param": "input", "code": "full"}


def test_an_error_that_is_not_json(url: str, script: Script) -> None:
    script.answers = [(500, "broken", {})]
    with pytest.raises(Refused) as refused:
        asked(url, "score", {"input": "x"})
    assert refused.value.error.keys() == {"message"}


def test_what_it_asks_first(url: str, script: Script) -> None:
    script.answers = [(200, {"data": [{"score": "loss", "available": True}]}, {})]
    assert asked(url, "scores", key=None) == {"loss": {"score": "loss", "available": True}}
    script.answers = [(200, {"object": "list", "data": [{"id": "smol"}]}, {})]
    assert asked(url, "model") == "smol"
    script.answers = [(404, {"detail": "Not Found"}, {})]
    with pytest.raises(StartupError, match="does not list scores"):
        asked(url, "scores")
    with pytest.raises(StartupError, match="does not list models"):
        asked(url, "model")
    script.answers = [(200, ["other"], {})]
    with pytest.raises(StartupError, match=r"does not list scores: is it divserve\?"):
        asked(url, "scores")
    with pytest.raises(StartupError, match="does not list scores: Connection error"):
        asked("http://127.0.0.1:9", "scores")
    with pytest.raises(StartupError, match="Connection error"):
        asked("http://127.0.0.1:9", "score", {})
