"""The whole HTTP layer on a scripted engine: its orders to the engine, and its failures."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.errors import DecodingFailed, InvalidRequest
from tests.support.chat import DOCUMENT, MESSAGES, PROMPT, QUESTION, guided
from tests.support.fake_client import ANSWER, MAX_GUIDE_TOKENS, FakeClient, arguments

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

CHAT = {"model": "smol", "messages": MESSAGES, "decoding": guided(trace=True)}
TEXT = {"model": "smol", "prompt": PROMPT, "decoding": guided(trace=True)}
ROUTES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return FakeClient(AsyncEngineArgs.from_cli_args(arguments()).create_engine_config())


@pytest.fixture(scope="module")
def app(engine: FakeClient) -> Any:
    from divserve.server import build_app

    return asyncio.run(build_app(engine, arguments()))  # type: ignore[arg-type]


@pytest.fixture
def http(app: Any, engine: FakeClient) -> TestClient:
    """A client of the app; the engine's script is reset."""
    engine.orders.clear()
    engine.fail_at, engine.report, engine.tops = None, True, True
    return TestClient(app)


def events(response: Any) -> list[str]:
    assert response.headers["content-type"].startswith("text/event-stream")
    return [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_the_guide_is_the_prompt_without_the_document(
    http: TestClient, engine: FakeClient, path: str, body: dict[str, Any]
) -> None:
    assert http.post(path, json=body).status_code == 200
    assert http.post(path, json={**body, "stream": True}).status_code == 200

    (first, second) = engine.orders
    guide = engine.renderer.tokenizer.decode(first["guides"][0])
    assert first == second
    assert DOCUMENT.strip() not in guide
    assert (QUESTION if "messages" in body else "The capital of France is") in guide
    if "messages" in body:
        assert guide.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_plain_request_orders_nothing(
    http: TestClient, engine: FakeClient, path: str, body: dict[str, Any]
) -> None:
    for decoding in ({}, {"decoding": None}):
        plain = {key: value for key, value in body.items() if key != "decoding"} | decoding
        response = http.post(path, json=plain)
        assert "decoding" not in response.json()["choices"][0]
        streamed = http.post(path, json={**plain, "stream": True})
        assert "decoding" not in streamed.text
        assert events(streamed)[-1] == "[DONE]"
    assert engine.orders == [None] * 4


def test_the_guide_is_rendered_with_the_flags_of_the_request(
    http: TestClient, engine: FakeClient
) -> None:
    body = {**CHAT, "add_generation_prompt": False}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert not engine.renderer.tokenizer.decode(engine.orders[0]["guides"][0]).endswith(
        "assistant\n"
    )


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("error", [DecodingFailed("lost"), InvalidRequest("too big", param="x")])
def test_a_failure_before_the_first_token_is_an_http_error(
    http: TestClient, engine: FakeClient, path: str, body: dict[str, Any], error: Any
) -> None:
    engine.fail_at, engine.error = 0, error
    for stream in (False, True):
        response = http.post(path, json={**body, "stream": stream})
        assert response.status_code == error.status
        assert response.json()["error"] == {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_failure_in_the_middle_ends_the_stream_with_an_error_event(
    http: TestClient, engine: FakeClient, path: str, body: dict[str, Any]
) -> None:
    engine.fail_at, engine.error = 2, DecodingFailed("lost", code="lockstep_lost")
    received = events(http.post(path, json={**body, "stream": True}))
    assert json.loads(received[-1])["error"]["code"] == "lockstep_lost"
    assert [c["decoding"]["trace"][0]["token"] for c in _with_account(received)] == [" Lyon", " is"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_without_statistics_never_reach_the_client(
    http: TestClient, engine: FakeClient, path: str, body: dict[str, Any], stream: bool
) -> None:
    engine.report = False
    text = http.post(path, json={**body, "stream": stream}).text
    assert '"code": "decoding_failed"' in text or '"code":"decoding_failed"' in text
    assert "cad was not applied" in text
    assert '"trace"' not in text
    assert " Lyon" not in text


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_a_stream_adds_up_to_the_whole(http: TestClient, path: str, body: dict[str, Any]) -> None:
    (whole,) = http.post(path, json=body).json()["choices"]
    received = events(http.post(path, json={**body, "stream": True}))
    *parts, last = _with_account(received)

    summary = last["decoding"]
    trace = [entry for part in parts for entry in part["decoding"]["trace"]] + summary["trace"]
    assert summary | {"trace": trace} == whole["decoding"]
    assert "".join(entry["token"] for entry in trace) == ANSWER
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in trace)
    assert received[-1] == "[DONE]"


TOP = {"top": 3}


def shown(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob}


@pytest.mark.parametrize("at", ["token", "final"])
@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_the_likeliest_tokens_of_every_stream(
    http: TestClient, path: str, body: dict[str, Any], at: str
) -> None:
    asked = {**body, "decoding": guided(trace={**TOP, "at": at})}
    (whole,) = http.post(path, json=asked).json()["choices"]
    trace = whole["decoding"]["trace"]
    assert list(trace[0]["top"]) == ["primary", "guide", "guided"]
    assert trace[1]["top"] == {
        "primary": [shown(" is", -0.5), shown(" Lyon", -1.5), shown(" the", -2.5)],
        "guide": [shown(" the", -0.5), shown(" Lyon", -1.5), shown(" is", -2.5)],
        "guided": [shown(" is", -0.333333)],
    }
    found = _with_account(events(http.post(path, json={**asked, "stream": True})))
    assert len(found) == (1 if at == "final" else len(trace))
    assert [entry for part in found for entry in part["decoding"]["trace"]] == trace
    plain = http.post(path, json=body).json()["choices"][0]["decoding"]["trace"]
    assert [{**entry, "top": None} for entry in plain] == [{**one, "top": None} for one in trace]
    assert "top" not in plain[0]


def test_likeliest_tokens_can_be_shown_as_ids(http: TestClient, engine: FakeClient) -> None:
    body = {**TEXT, "decoding": guided(trace=TOP), "return_tokens_as_token_ids": True, "n": 2}
    for choice in http.post("/v1/completions", json=body).json()["choices"]:
        tops = [entry["top"]["guided"] for entry in choice["decoding"]["trace"]]
        assert [top[0]["token"] for top in tops] == [f"token_id:{token}" for token in engine.answer]


def test_tokens_without_the_likeliest_ones_are_an_error(
    http: TestClient, engine: FakeClient
) -> None:
    engine.tops = False
    response = http.post("/v1/completions", json={**TEXT, "decoding": guided(trace=TOP)})
    assert response.status_code == 500
    assert "came with the likeliest of 0" in response.json()["error"]["message"]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_the_whole_trace_at_the_end_of_a_stream(
    http: TestClient, path: str, body: dict[str, Any]
) -> None:
    (whole,) = http.post(path, json=body).json()["choices"]
    at_end = {**body, "decoding": guided(trace="final")}
    assert http.post(path, json=at_end).json()["choices"][0]["decoding"] == whole["decoding"]
    (last,) = _with_account(events(http.post(path, json={**at_end, "stream": True})))
    assert last["finish_reason"] is not None
    assert last["decoding"] == whole["decoding"]


def test_streams_are_not_buffered_by_proxies(http: TestClient) -> None:
    headers = http.post("/v1/completions", json={**TEXT, "stream": True}).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


def test_tokens_can_be_shown_as_ids(http: TestClient, engine: FakeClient) -> None:
    response = http.post("/v1/completions", json={**TEXT, "return_tokens_as_token_ids": True})
    entry = response.json()["choices"][0]["decoding"]["trace"][0]
    assert entry["token"] == f"token_id:{engine.answer[0]}"
    assert bytes(entry["bytes"]).decode() == " Lyon"


def test_a_prompt_that_leaves_its_guide_no_room(http: TestClient, engine: FakeClient) -> None:
    """The cache may hold less than the context; vLLM's own check covers only the latter."""
    engine.capacity.max_guide_tokens = 10
    try:
        response = http.post("/v1/completions", json=TEXT)
    finally:
        engine.capacity.max_guide_tokens = MAX_GUIDE_TOKENS
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"
    assert response.json()["error"]["code"] == "context_length_exceeded"


def _with_account(received: list[str]) -> list[Any]:
    chunks = [json.loads(event) for event in received if event.startswith('{"id"')]
    return [c for chunk in chunks for c in chunk["choices"] if "decoding" in c]


HARMONY = {"author": {"role": "user"}, "content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("messages", "guide", "param"),
    [
        ([HARMONY], None, "messages.0"),
        (None, [HARMONY], "decoding.guide.messages.0"),
        (None, [{"role": "user", "content": [5]}], "decoding.guide.messages.0"),
        (
            None,
            [{"role": "user", "content": [{"type": "text", "text": 5}]}],
            "decoding.guide.messages.0",
        ),
        (None, [{"role": "assistant", "tool_calls": [{}]}], "decoding.guide"),
    ],
)
def test_messages_that_cannot_be_rendered_are_a_400(
    http: TestClient, messages: Any, guide: Any, param: str, stream: bool
) -> None:
    """They pass vLLM's validation, but templates and renderers fail on them."""
    decoding = {"method": "cad", "guide": {"messages": guide}} if guide else {"method": "cfg"}
    body = {
        "messages": messages or [{"role": "user", "content": "Hello"}],
        "decoding": decoding,
        "stream": stream,
        "max_tokens": 2,
    }
    response = http.post("/v1/chat/completions", json=body)

    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
