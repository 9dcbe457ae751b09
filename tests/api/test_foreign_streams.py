"""/v1/messages and /v1/responses, which vLLM answers: their errors say what happened."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.http.foreign import INTERNAL
from tests.support.chat import MESSAGES
from tests.support.fake_client import FakeClient

MESSAGE = {"model": "smol", "messages": MESSAGES, "max_tokens": 5}
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

RESPONSE = {"model": "smol", "input": "Hi", "max_output_tokens": 5}


@pytest.fixture
def http(app: Any, fake_engine: FakeClient) -> TestClient:
    fake_engine.fail_at = None
    return TestClient(app, raise_server_exceptions=False)


def endings() -> list[Any]:
    from divserve.engine.client.gone import EngineStopped, ShuttingDown

    return [
        (ShuttingDown, "shutting_down", "The server is shutting down."),
        (EngineStopped, "engine_unavailable", "The engine has stopped"),
    ]


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and object of every event."""
    found = []
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("which", [0, 1], ids=["drain", "engine"])
@pytest.mark.parametrize("stream", [False, True])
def test_messages_before_the_first_token(
    http: TestClient, fake_engine: FakeClient, which: int, stream: bool
) -> None:
    kind, code, message = endings()[which]
    fake_engine.fail_at, fake_engine.error = 0, kind()
    response = http.post("/v1/messages", json={**MESSAGE, "stream": stream})
    assert response.status_code == 503
    body = response.json()
    assert body["type"] == "error"
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["type"]) == (code, "service_unavailable_error")
    assert body["error"]["message"].startswith(message)
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize("which", [0, 1], ids=["drain", "engine"])
def test_messages_in_the_middle(http: TestClient, fake_engine: FakeClient, which: int) -> None:
    kind, code, message = endings()[which]
    fake_engine.fail_at, fake_engine.error = 2, kind()
    response = http.post("/v1/messages", json={**MESSAGE, "stream": True})
    assert response.status_code == 200
    events = events_of(response.text)
    names = [name for name, _ in events]
    assert names[0] == "message_start"
    assert names[-1] == "error"
    assert names.count("error") == 1
    assert "message_stop" not in names
    error = events[-1][1]["error"]
    assert (error["code"], error["type"]) == (code, "service_unavailable_error")
    assert error["message"].startswith(message)


def test_messages_that_end_well(http: TestClient) -> None:
    whole = http.post("/v1/messages", json=MESSAGE).json()["content"][0]["text"]
    response = http.post("/v1/messages", json={**MESSAGE, "stream": True})
    events = events_of(response.text)
    assert (events[0][0], events[-1][0]) == ("message_start", "message_stop")
    deltas = [data["delta"] for name, data in events if name == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == whole


def test_messages_of_another_failure(http: TestClient, fake_engine: FakeClient) -> None:
    fake_engine.fail_at, fake_engine.error = 0, RuntimeError("a secret")
    for stream in (False, True):
        response = http.post("/v1/messages", json={**MESSAGE, "stream": stream})
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["error"]["code"] == "internal_error"
        assert response.json()["error"]["message"] == INTERNAL


@pytest.mark.parametrize("which", [0, 1], ids=["drain", "engine"])
def test_responses(http: TestClient, fake_engine: FakeClient, which: int) -> None:
    kind, code, message = endings()[which]
    fake_engine.fail_at, fake_engine.error = 0, kind()
    response = http.post("/v1/responses", json=RESPONSE)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == code
    for tokens in (0, 2):
        fake_engine.fail_at = tokens
        events = events_of(http.post("/v1/responses", json={**RESPONSE, "stream": True}).text)
        assert events[0][0] == "response.created"
        name, error = events[-1]
        assert (name, error["type"], error["code"]) == ("error", "error", code)
        assert error["message"].startswith(message)
        assert error["sequence_number"] == len(events) - 1


def test_responses_of_another_failure(http: TestClient, fake_engine: FakeClient) -> None:
    fake_engine.fail_at, fake_engine.error = 2, RuntimeError("a secret")
    response = http.post("/v1/responses", json={**RESPONSE, "stream": True})
    assert "secret" not in response.text
    name, error = events_of(response.text)[-1]
    assert (name, error["code"], error["message"]) == ("error", "internal_error", INTERNAL)


def test_responses_to_a_client_s_mistake(http: TestClient) -> None:
    """vLLM detects it after the stream has begun."""
    asked = {**RESPONSE, "logit_bias": {"999999": 1}}
    whole = http.post("/v1/responses", json=asked)
    assert whole.status_code == 400
    streamed = http.post("/v1/responses", json={**asked, "stream": True})
    error = events_of(streamed.text)[-1][1]
    assert {name: error[name] for name in ("code", "message", "param")} == {
        name: whole.json()["error"][name] for name in ("code", "message", "param")
    }


def test_tokens_of_a_message(app: Any, http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {name: MESSAGE[name] for name in ("model", "messages")}
    assert http.post("/v1/messages/count_tokens", json=asked).json()["input_tokens"] > 5

    async def render(request: Any) -> Any:
        raise endings()[1][0]

    serving = app.state.anthropic_serving_messages
    monkeypatch.setattr(serving, "render_chat_request", render)
    response = http.post("/v1/messages/count_tokens", json=asked)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert response.json()["error"]["code"] == "engine_unavailable"


def test_a_converter_that_fails(
    app: Any, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reports it in its own way, with internal text."""

    async def broken(*args: Any, **kwargs: Any) -> Any:
        yield 'data: {"id": 5}\n\n'

    serving = app.state.anthropic_serving_messages
    monkeypatch.setattr(serving, "chat_completion_stream_generator", broken)
    response = http.post("/v1/messages", json={**MESSAGE, "stream": True})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == INTERNAL


def test_responses_in_the_background(app: Any, http: TestClient) -> None:
    """A drain would not wait for them. vLLM refuses them itself unless it stores answers."""
    asked = {**RESPONSE, "background": True, "store": True}
    response = http.post("/v1/responses", json=asked)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "background"
    assert "leave 'background' out" in response.json()["error"]["message"]
