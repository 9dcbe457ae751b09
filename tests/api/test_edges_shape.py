"""Failures of any kind in OpenAI's shape, with a request id: small apps inside the edges."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from divserve.edges import shape
from divserve.errors import ApiError, DecodingFailed, Unavailable
from divserve.http.foreign import INTERNAL
from tests.support.edges import Call, small_app

SECRET = "the password is in config.py line 7"


@pytest.fixture(scope="module")
def odd() -> TestClient:
    """Routes that fail in every way that Starlette handles."""
    app = small_app()
    _fail_oddly(app)
    return TestClient(app, raise_server_exceptions=False)


def _fail_oddly(app: FastAPI) -> None:
    @app.get("/fail/{how}")
    async def fail(how: str) -> Response:
        match how:
            case "crash":
                raise KeyError(SECRET)
            case "unprocessable":
                raise HTTPException(422, "mend it")
            case "structured":
                raise HTTPException(400, {"a": 1})
            case "teapot":
                raise HTTPException(418, "short and stout", {"X-Pot": "tea"})
            case "text":
                return PlainTextResponse("no", 502)
            case "empty":
                return Response(status_code=403)
            case "string":
                return JSONResponse({"error": "Unauthorized"}, 401)
            case "unknown":
                return JSONResponse([1], 499)
            case "traceback":
                return JSONResponse({"error": {"message": SECRET, "code": 500}}, 500)
            case "lost":
                raise DecodingFailed("the two streams came apart", param="decoding")
            case "stopped":
                raise Unavailable("gone", retry_after_s=1.2)

        async def broken() -> Any:
            yield "one"
            raise ApiError("no")

        return StreamingResponse(broken())

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()


@pytest.mark.parametrize(
    ("how", "status", "code", "message"),
    [
        ("crash", 500, "internal_error", INTERNAL),
        ("unprocessable", 400, "invalid_value", "mend it"),
        ("structured", 400, "invalid_value", "Bad request."),
        ("teapot", 418, "i'm_a_teapot", "short and stout"),
        ("text", 502, "bad_gateway", INTERNAL),
        ("empty", 403, "forbidden", "Forbidden."),
        ("string", 401, "invalid_api_key", "Unauthorized"),
        ("unknown", 499, "http_499", "Http 499."),
        ("traceback", 500, "internal_error", INTERNAL),
        ("lost", 500, "decoding_failed", "the two streams came apart"),
        ("stopped", 503, "engine_unavailable", "gone"),
    ],
)
def test_odd_failures(odd: TestClient, how: str, status: int, code: str, message: str) -> None:
    response = odd.get(f"/fail/{how}")
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["message"]) == (code, message)
    assert error.keys() == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert SECRET not in response.text
    assert response.headers.get("x-pot") == ("tea" if how == "teapot" else None)
    if how == "stopped":
        assert response.headers["retry-after"] == "2"
        assert response.headers["retry-after-ms"] == "1200"


def test_a_crash_in_anthropics_form() -> None:
    app = small_app()

    @app.post("/v1/messages")
    async def crash() -> None:
        raise RuntimeError(SECRET)

    response = TestClient(app).post("/v1/messages")
    assert (response.status_code, response.json()["type"]) == (500, "error")
    assert response.json()["error"]["code"] == "internal_error"


def test_half_an_answer_is_cut_off() -> None:
    """Nothing is appended to what was sent; the server closes the connection."""

    async def test() -> None:
        app = small_app()
        _fail_oddly(app)
        call = Call(app, "/fail/late", method="GET")
        with pytest.raises(RuntimeError, match="already started"):
            await call.task
        assert call.body == b"one"
        assert len(app.state.traffic) == 0

    asyncio.run(test())


def test_websockets_pass(odd: TestClient) -> None:
    with odd.websocket_connect("/socket") as socket:
        assert socket.receive_text() == "hello"
    with pytest.raises(WebSocketDisconnect), odd.websocket_connect("/fail/crash"):
        pass


def test_probes_keep_their_bodies(odd: TestClient) -> None:
    app: Any = odd.app
    app.state.traffic.draining = True
    try:
        assert odd.get("/ready").json() == {"status": "draining"}
    finally:
        app.state.traffic.draining = False


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["abc-1.2:3"], True),
        (["x" * 128], True),
        (["one two"], True),
        (["x" * 129], False),
        ([""], False),
        (["caf\xe9"], False),
        (["a\tb"], False),
        (["a", "b"], False),
        ([], False),
    ],
)
def test_request_ids(odd: TestClient, given: list[str], kept: bool) -> None:
    headers = [(b"x-request-id", value.encode("latin-1")) for value in given]
    for path in ("/v1/models", "/fail/crash", "/nowhere"):
        found = odd.get(path, headers=headers).headers.get_list("x-request-id")
        assert len(found) == 1
        assert (found == given) is kept
        if not kept:
            assert len(found[0]) == 32


def test_what_the_log_says(
    odd: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The cause of what clients see as an internal error; nothing about their own mistakes."""
    monkeypatch.setattr(shape, "logger", logging.getLogger("of the test"))
    headers = {"x-request-id": "me-7"}
    for how in ("crash", "traceback", "text", "lost", "unprocessable", "string"):
        odd.get(f"/fail/{how}", headers=headers)
    crash, traceback, text = caplog.records
    assert crash.getMessage() == "Request me-7 failed"
    assert crash.exc_info is not None
    assert isinstance(crash.exc_info[1], KeyError)
    told = json.dumps({"error": {"message": SECRET, "code": 500}}, separators=(",", ":"))
    assert traceback.getMessage() == f"Request me-7 failed: {told}"
    assert text.getMessage() == "Request me-7 failed: no"


def test_streams_are_not_collected() -> None:
    """The first event is sent before the second one exists."""

    async def test() -> None:
        app = small_app()
        call = Call(app, "/wait/1")
        while len(call.sent) < 2:
            await asyncio.sleep(0)
        assert call.sent[1] == {
            "type": "http.response.body",
            "body": b"data: first\n\n",
            "more_body": True,
        }
        app.state.gate.set()
        await call.task

    asyncio.run(test())
