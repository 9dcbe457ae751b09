"""Answers rewritten on their way out, message by message: errors, their headers, their ids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.edges.request_id import RequestIds, request_id_of
from divserve.edges.shape import ShapeErrors


def test_an_error_in_pieces_is_one_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 409, "headers": []}
        await send(start)
        for piece, more in ((b'{"error": ', True), (b'"too ', True), (b'late"}', False)):
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    response = TestClient(RequestIds(ShapeErrors(app))).get("/late")
    assert response.status_code == 409
    assert response.json()["error"]["message"] == "too late"


@pytest.mark.parametrize(
    ("status", "body", "given", "told"),
    [
        (503, b"", None, "1"),
        (429, b'{"error": "slow"}', None, "1"),
        (503, b'{"error": {"message": "m", "code": 503}}', None, "1"),
        (503, b'{"error": {"message": "m", "code": 503}}', b"7", "7"),
        (503, b'{"error": {"message": "m", "param": null, "code": "dead"}}', None, None),
        (500, b'{"error": {"message": "m", "code": 500}}', None, None),
        (504, b"", None, None),
        (400, b"[1]", None, None),
    ],
)
def test_when_another_try_is_asked_for(
    status: int, body: bytes, given: bytes | None, told: str | None
) -> None:
    """Where vLLM is full or scaling; our own errors set the header themselves."""
    headers = [(b"Content-Type", b"text/plain"), (b"Content-Length", b"5"), (b"x-pot", b"tea")]
    headers += [] if given is None else [(b"retry-after", given)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    response = TestClient(ShapeErrors(app)).get("/")
    assert response.status_code == status
    assert response.headers.get("retry-after") == told
    assert response.headers["x-pot"] == "tea"
    assert response.headers.get_list("content-type") == ["application/json"]
    assert response.headers.get_list("content-length") == [str(len(response.content))]


def test_the_id_that_logs_name() -> None:
    assert request_id_of({}) == request_id_of({"state": {}}) == "-"
    scope = {"type": "http", "headers": [(b"x-request-id", b"me-7")]}

    async def app(inner: Any, receive: Any, send: Any) -> None:
        assert request_id_of(inner) == "me-7"
        await send({"type": "http.response.start", "status": 204})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(RequestIds(app)(scope, receive=None, send=send))  # type: ignore[arg-type]
    assert request_id_of(scope) == "me-7"
    (start,) = sent
    assert start["headers"] == [(b"x-request-id", b"me-7")]
