"""How much one request may ask for: both sides of every limit, on guided and other routes."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.edges.body import GuardBody
from divserve.edges.flags import EdgeSettings
from divserve.edges.traffic import Traffic
from divserve.http.scope import WEIGH
from tests.support.chat import MESSAGES, PROMPT, guided
from tests.support.edges import LIMITS
from tests.support.fake_client import FakeClient, arguments

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

CHAT = ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2})
TEXT = ("/v1/completions", {"prompt": PROMPT, "max_tokens": 2})
RESPONSES = ("/v1/responses", {"input": "Hi", "max_output_tokens": 2})
BATCH = ("/v1/chat/completions/batch", {"messages": [MESSAGES], "max_tokens": 2})
GENERATE = ("/inference/v1/generate", {"token_ids": [5, 6], "sampling_params": {}})
SCORE = ("/generative_scoring", {"query": "a", "items": ["b"]})
PART = {"type": "text", "text": ""}
TWO_GUIDES = [guided("adacad"), guided("kl_temperature") | {"guide": {"without": "What"}}]
ANTHROPIC = ("/v1/messages", {"messages": MESSAGES, "max_tokens": 2, "model": "smol"})


@pytest.fixture(scope="module")
def http(fake_engine: FakeClient) -> TestClient:
    from divserve.server import build_app

    fake_engine.fail_at = None
    app = asyncio.run(build_app(fake_engine, arguments(**LIMITS)))  # type: ignore[arg-type]
    return TestClient(app)


REFUSED: list[tuple[Any, dict[str, Any], str | None, str]] = [
    (CHAT, {"n": 3}, "n", "--max-n"),
    (TEXT, {"n": 3}, "n", "--max-n"),
    (TEXT, {"n": 10**30}, "n", "--max-n"),
    (CHAT, {"n": -(10**9)}, "n", "must be at least 1"),
    (TEXT, {"n": 0}, "n", "must be at least 1"),
    (GENERATE, {"sampling_params": {"n": 3}}, "n", "--max-n"),
    (GENERATE, {"sampling_params": {"n": "3"}}, "n", "--max-n"),
    (GENERATE, {"sampling_params": {"stop": ["abcdef"]}}, "stop", "--max-stop-length"),
    (SCORE, {"items": ["a", "b", "c"]}, "items", "--max-batch-prompts"),
    (CHAT, {"stop": ["a", "b", "c"]}, "stop", "--max-stop-strings"),
    (TEXT, {"stop": ["a", "abcdef"]}, "stop", "--max-stop-length"),
    (TEXT, {"stop": "abcdef"}, "stop", "--max-stop-length"),
    (TEXT, {"prompt": ["a", "b", "c"]}, "prompt", "--max-batch-prompts"),
    (TEXT, {"prompt": [[1], [2], [3]]}, "prompt", "--max-batch-prompts"),
    (CHAT, {"decoding": guided(trace=True), "max_tokens": 101}, "decoding.trace", "101 tokens"),
    (
        CHAT,
        {"decoding": guided(trace=True), "max_completion_tokens": 101, "max_tokens": 2},
        "decoding.trace",
        "--max-trace-tokens",
    ),
    (CHAT, {"decoding": guided(trace=True), "max_tokens": None}, "decoding.trace", "256 tokens"),
    (
        CHAT,
        {"decoding": guided(trace={"top": 3}), "max_tokens": 23},
        "decoding.trace.top",
        "--max-trace-candidates",
    ),
    (CHAT, {"decoding": [guided(trace=True)], "max_tokens": 101}, "decoding.0.trace", "101"),
    (CHAT, {"n": 2, "decoding": TWO_GUIDES}, "n", "--max-rows-per-request"),
    (SCORE, {"items": ["a", "b"], "prompt": "c", "n": 2}, "n", "--max-rows-per-request"),
    (CHAT, {"messages": MESSAGES * 9}, "messages", "--max-messages"),
    (RESPONSES, {"input": MESSAGES * 9}, "input", "--max-messages"),
    (ANTHROPIC, {"messages": MESSAGES * 9}, "messages", "--max-messages"),
    (CHAT, {"messages": [{"role": "user", "content": [PART] * 9}]}, "messages", "--max-parts"),
    (CHAT, {"tools": [{}] * 4}, "tools", "--max-tools"),
    (RESPONSES, {"tools": [{}] * 4}, "tools", "--max-tools"),
    (TEXT, {"logit_bias": {str(i): 1 for i in range(400)}}, None, "--max-json-values"),
    (BATCH, {"messages": [MESSAGES] * 3}, "messages", "--max-batch-prompts"),
    (BATCH, {"n": 3}, "n", "--max-n"),
    (ANTHROPIC, {"stop_sequences": ["a", "b", "c"]}, "stop_sequences", "--max-stop-strings"),
    (ANTHROPIC, {"stop_sequences": ["abcdef"]}, "stop_sequences", "--max-stop-length"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("route", "fields", "param", "flag"), REFUSED)
def test_refused(
    http: TestClient, route: Any, fields: dict[str, Any], param: str | None, flag: str, stream: bool
) -> None:
    path, body = route
    response = http.post(path, json={**body, "stream": stream, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert flag in error["message"]
    assert error["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        (CHAT, {"n": 2, "stop": ["a", "abcde"]}),
        (TEXT, {"n": 2, "stop": ["a", "abcde"], "prompt": ["a", "b"]}),
        (TEXT, {"prompt": list(range(5, 50))}),
        (TEXT, {"stop": "abcde"}),
        (CHAT, {"decoding": guided(trace=True), "max_tokens": 100}),
        (CHAT, {"decoding": guided(), "max_tokens": None}),
        (TEXT, {"decoding": guided(trace=True), "max_tokens": 100}),
        (BATCH, {"messages": [MESSAGES] * 2}),
        (ANTHROPIC, {"stop_sequences": ["a", "abcde"]}),
    ],
)
def test_let_in(http: TestClient, route: Any, fields: dict[str, Any]) -> None:
    path, body = route
    response = http.post(path, json={**body, **fields})
    assert response.status_code == 200, response.text


def test_a_preset_is_limited_like_the_field(fake_engine: FakeClient) -> None:
    from divserve.server import build_app

    args = arguments(max_trace_tokens=5)
    args.decodings = {"traced": {"method": "entropy_temperature", "trace": True}}
    http = TestClient(asyncio.run(build_app(fake_engine, args)))  # type: ignore[arg-type]
    body = {"model": "smol@traced", "prompt": "Hi", "max_tokens": 6}
    response = http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "decoding.trace")
    assert http.post("/v1/completions", json={**body, "max_tokens": 5}).status_code == 200


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ({}, 1),
        ({"messages": MESSAGES}, 1),
        ({"messages": [MESSAGES] * 5}, 5),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"items": ["a"] * 7}, 7),
        ({"sampling_params": {"n": 4}}, 4),
        ({"n": "5"}, 5),
        ({"n": 6.0, "prompt": "a", "prompt_embeds": ["b"]}, 12),
        ({"sampling_params": "n", "n": "many"}, 1),
    ],
)
def test_rows_of_other_routes(body: dict[str, Any], rows: int) -> None:
    """The queue counts the rows before vLLM has read the body."""
    counted = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        counted.append(traffic.rows)

    traffic = Traffic()
    ticket = traffic.enter("me", 1)
    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": {WEIGH: partial(traffic.weigh, ticket)},
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    asyncio.run(GuardBody(app, EdgeSettings())(scope, receive, send))
    assert counted == [rows]


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "logprobs"),
        (TEXT, {"logprobs": 21}, "logprobs"),
        (TEXT, {"prompt_logprobs": 21}, "prompt_logprobs"),
    ],
)
def test_vllm_limits_logprobs(
    http: TestClient, route: Any, fields: dict[str, Any], param: str
) -> None:
    """The flag is --max-logprobs, 20 by default."""
    path, body = route
    response = http.post(path, json={**body, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "greater than max allowed: 20" in response.json()["error"]["message"]


def test_code_in_a_request_is_never_run(http: TestClient) -> None:
    """A template is rejected, and no field of a request reaches a model loader."""
    path, body = CHAT
    for fields in (
        {"chat_template": "{{ cycler.__init__.__globals__ }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 7 * 7 }}"}},
    ):
        response = http.post(path, json={**body, **fields})
        assert response.status_code == 400
        assert "--trust-request-chat-template" in response.json()["error"]["message"]
    told = {**body, "trust_remote_code": True, "tokenizer": "evil", "model_path": "evil"}
    plain = http.post(path, json=body).json()["choices"]
    assert http.post(path, json=told).json()["choices"] == plain
