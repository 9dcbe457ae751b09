"""``decoding`` on routes that would ignore it, at the level of ASGI messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from divserve.api.refuse import RefuseDecoding
from divserve.http.paths import COUNT_TOKENS, GUIDED_ROUTES

BODY = {"model": "m", "decoding": {"method": "cad"}}
JSON = (b"content-type", b"application/json; charset=utf-8")
DISCONNECT = {"type": "http.disconnect"}


class Server:
    """An inner app that reads its body and one more message, and answers 200."""

    def __init__(self) -> None:
        self.read: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while not self.read or self.read[-1].get("more_body"):
            self.read.append(await receive())
        self.read.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.read)


def post(
    path: str,
    *chunks: bytes,
    header: tuple[bytes, bytes] | None = JSON,
    aliases: Sequence[str] = (),
    **scope: Any,
) -> tuple[int, Any, Server]:
    """Sends a POST in chunks; returns the status, the answer, and the inner app."""
    incoming: list[Any] = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)}
        for i, chunk in enumerate(chunks)
    ]
    incoming.append(DISCONNECT)
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    server = Server()
    headers = [header] if header else []
    asked = {"type": "http", "method": "POST", "path": path, "headers": headers} | scope
    asyncio.run(RefuseDecoding(server, aliases)(asked, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"] or "null"), server


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/render",
        "/v1/responses/render",
        "/v1/messages/render",
        "/invocations",
        "/inference/v1/generate",
        "/v1/embeddings",
        "/tokenize",
    ],
)
def test_other_routes_refuse_decoding(path: str) -> None:
    status, answer, server = post(path, json.dumps(BODY).encode())
    assert status == 400
    assert answer["error"]["param"] == "decoding"
    assert path in answer["error"]["message"]
    for guided in GUIDED_ROUTES:
        assert guided in answer["error"]["message"]
    assert not server.read


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(BODY, indent=2).encode(),
        b'{"d\\u0065coding": {"method": "cad"}}',
        json.dumps(BODY).encode("utf-16"),
        b'{"decoding": 0}',
    ],
    ids=["plain", "escaped", "utf-16", "no object"],
)
def test_however_the_key_is_written(body: bytes) -> None:
    assert post("/invocations", body[:9], body[9:])[0] == 400


@pytest.mark.parametrize(("named", "status"), [(b"m@strict", 400), (b"m@other", 200)])
def test_an_alias_in_sagemaker_s_header(named: bytes, status: int) -> None:
    """vLLM uses it instead of the body's model."""
    header = (b"x-amzn-sagemaker-adapter-identifier", named)
    told, answer, _ = post("/invocations", b"{}", headers=[JSON, header], aliases=["m@strict"])
    assert told == status
    assert answer is None or "MODEL@…" in answer["error"]["message"]


@pytest.mark.parametrize("header", [None, (b"content-type", b"application/ld+JSON")])
def test_whatever_the_content_type_says_about_json(header: Any) -> None:
    assert post("/invocations", json.dumps(BODY).encode(), header=header)[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"decoding": null}',
        b'{"input": "decoding"}',
        b'{"metadata": {"decoding": 1}}',
        b'["decoding"]',
        b'{"decoding": ',
        b"",
    ],
)
def test_other_bodies_reach_their_route_as_they_came(body: bytes) -> None:
    chunks = [body[:5], body[5:]]
    status, _, server = post("/invocations", *chunks)
    assert status == 200
    assert [message["body"] for message in server.read[:2]] == chunks
    assert server.read[2] == DISCONNECT


@pytest.mark.parametrize(
    "path",
    [*GUIDED_ROUTES, COUNT_TOKENS, "/v1/chat/completions/", "/api/v1/completions"],
)
def test_guided_routes_pass(path: str) -> None:
    status, _, server = post(path, json.dumps(BODY).encode(), root_path="/api")
    assert status == 200
    assert server.body == json.dumps(BODY).encode()


def test_uploads_are_not_read_ahead() -> None:
    form = (b"content-type", b"multipart/form-data; boundary=decoding")
    assert post("/v1/audio/transcriptions", b'{"decoding": 1}', header=form)[0] == 200


def test_a_client_that_leaves_while_it_sends() -> None:
    """The disconnect reaches the route at the point where it came."""
    incoming: list[Any] = [
        {"type": "http.request", "body": b'{"deco', "more_body": True},
        DISCONNECT,
        DISCONNECT,
    ]

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None: ...

    server = Server()
    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": [JSON]}
    asyncio.run(RefuseDecoding(server)(scope, receive, send))
    assert [message["type"] for message in server.read] == [
        "http.request",
        "http.disconnect",
        "http.disconnect",
    ]


def test_other_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def unused(*_: Any) -> Any: ...

    for kind in ("lifespan", "websocket"):
        asyncio.run(RefuseDecoding(app)({"type": kind}, unused, unused))
    assert seen == ["lifespan", "websocket"]
