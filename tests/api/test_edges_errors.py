"""Every error has OpenAI's shape and a request id, whatever raised it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.http.foreign import INTERNAL, status_of
from tests.support.chat import MESSAGES, PROMPT
from tests.support.fake_client import FakeClient

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

CHAT = {"model": "smol", "messages": MESSAGES}
TEXT = {"model": "smol", "prompt": PROMPT}
SECRET = "the password is in config.py line 7"


@pytest.fixture
def http(app: Any, fake_engine: FakeClient) -> TestClient:
    fake_engine.fail_at = None
    return TestClient(app)


def error_of(response: Any) -> dict[str, Any]:
    """The error object, after its form has been checked."""
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert 0 < len(response.headers["x-request-id"]) <= 128
    assert status_of(error) == response.status_code
    return error


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_an_unknown_route(http: TestClient, method: str) -> None:
    response = http.request(method, "/v1/nowhere")
    assert response.status_code == 404
    error = error_of(response)
    assert error["code"] == "not_found"
    assert f"{method} /v1/nowhere" in error["message"]


def test_a_wrong_method(http: TestClient) -> None:
    response = http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    error = error_of(response)
    assert error["code"] == "method_not_allowed"
    assert "takes POST" in error["message"]


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_what_is_not_json(http: TestClient, path: str, body: Any) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"content-type": content_type}
        response = http.post(f"/v1/{path}", content=json.dumps(body), headers=headers)
        assert response.status_code == 415
        assert error_of(response)["code"] == "unsupported_content_type"
    headers = {"content-type": "application/json"}
    for content in (b"", b"{", b"nul", b'{"a": \xff}', b"[1, 2]", b'"text"'):
        response = http.post(f"/v1/{path}", content=content, headers=headers)
        assert response.status_code == 400
        error_of(response)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_errors_of_vllm_have_a_code(
    http: TestClient, path: str, body: dict[str, Any], stream: bool
) -> None:
    def refuse(**fields: Any) -> tuple[int, dict[str, Any]]:
        response = http.post(f"/v1/{path}", json={**body, "stream": stream, **fields})
        return response.status_code, error_of(response)

    status, error = refuse(model="gone")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"].startswith("The model `gone` does not exist.")

    many = "word " * 300
    key = "messages" if "messages" in body else "prompt"
    long = [{"role": "user", "content": many}] if key == "messages" else many
    status, error = refuse(**{key: long})
    assert (status, error["code"], error["param"]) == (
        400,
        "context_length_exceeded",
        "input_tokens",
    )
    assert "maximum context length is 256 tokens" in error["message"]

    status, error = refuse(temperature=-1)
    assert (status, error["code"], error["param"]) == (400, "invalid_value", "temperature")
    status, error = refuse(logit_bias={"999999": 1})
    assert (status, error["code"], error["param"]) == (400, "invalid_value", "logit_bias")


def test_routes_of_vllm_without_a_body_of_ours(http: TestClient) -> None:
    response = http.post("/tokenize", json={"model": "gone", "prompt": "x"})
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")
    response = http.post("/v1/responses", json={"input": 5})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_value")
    response = http.post("/invocations", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    error_of(response)


def test_input_that_vllm_stumbles_over_is_the_clients_error(http: TestClient) -> None:
    """vLLM reads the text of every part of an output message; a refusal has none."""
    refused = {"type": "refusal", "refusal": "No."}
    item = {
        "type": "message",
        "id": "m",
        "role": "assistant",
        "status": "completed",
        "content": [refused],
    }
    response = http.post("/v1/responses", json={"model": "smol", "input": [item]})
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", "input")
    assert error["message"].startswith("The input cannot be read: AttributeError: ")


def test_anthropics_clients_find_what_they_look_for(http: TestClient) -> None:
    body = {"model": "gone", "messages": MESSAGES, "max_tokens": 2}
    response = http.post("/v1/messages", json=body)
    assert response.status_code == 404
    assert response.json()["type"] == "error"
    assert error_of(response)["message"].startswith("The model `gone` does not exist.")


def test_anthropics_clients_find_it_in_errors_of_the_edges(http: TestClient) -> None:
    response = http.post("/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["type"]) == (400, "error")
    assert error_of(response)["code"] == "invalid_json"


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_a_crash_tells_no_internals(
    http: TestClient,
    fake_engine: FakeClient,
    path: str,
    body: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake_engine.fail_at, fake_engine.error = 0, RuntimeError(SECRET)
    logging.getLogger("vllm").addHandler(caplog.handler)
    try:
        for stream in (False, True):
            response = http.post(
                f"/v1/{path}", json={**body, "stream": stream}, headers={"x-request-id": "me-7"}
            )
            assert response.status_code == 500
            assert error_of(response)["message"] == INTERNAL
            assert error_of(response)["code"] == "internal_error"
            assert response.headers["x-request-id"] == "me-7"
    finally:
        logging.getLogger("vllm").removeHandler(caplog.handler)
    assert "Request me-7 failed" in caplog.text
    assert SECRET in caplog.text


def test_a_crash_in_the_middle_of_a_stream(http: TestClient, fake_engine: FakeClient) -> None:
    fake_engine.fail_at, fake_engine.error = 2, RuntimeError(SECRET)
    response = http.post("/v1/completions", json={**TEXT, "stream": True})
    assert response.status_code == 200
    events = [line[6:] for line in response.text.splitlines() if line.startswith('data: {"error"')]
    (error,) = (json.loads(event)["error"] for event in events)
    assert (error["message"], error["code"], error["type"]) == (
        INTERNAL,
        "internal_error",
        "server_error",
    )
    assert SECRET not in response.text


def test_what_the_engine_says_when_it_stops(http: TestClient, fake_engine: FakeClient) -> None:
    from divserve.engine.client.gone import ShuttingDown

    fake_engine.fail_at, fake_engine.error = 0, ShuttingDown()
    for stream in (False, True):
        response = http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert response.status_code == 503
        assert error_of(response)["code"] == "shutting_down"
        assert response.headers["retry-after"] == "5"


def test_a_full_queue_of_vllm_may_be_tried_again(http: TestClient, fake_engine: FakeClient) -> None:
    from vllm.exceptions import QueueOverflowError

    fake_engine.fail_at, fake_engine.error = 0, QueueOverflowError()
    response = http.post("/v1/completions", json=TEXT)
    assert response.status_code == 503
    assert error_of(response)["code"] == "service_unavailable"
    assert response.headers["retry-after"] == "1"


def test_vllm_makes_its_id_of_ours(http: TestClient) -> None:
    response = http.post("/v1/completions", json=TEXT)
    assert response.json()["id"] == f"cmpl-{response.headers['x-request-id']}"
