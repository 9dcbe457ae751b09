"""How much one request may ask: both sides of every limit, on guided and other routes."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from divserve.api.limits import check_fields, rows_of
from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.edges.body import check_depth
from divserve.edges.flags import EdgeSettings
from divserve.errors import InvalidRequest
from tests.support.chat import MESSAGES, PROMPT, guided
from tests.support.edges import Call, small_app
from tests.support.fake_client import FakeClient, arguments

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

LIMITS: dict[str, Any] = {
    "max_n": 2,
    "max_stop_strings": 2,
    "max_stop_length": 5,
    "max_batch_prompts": 2,
    "max_trace_tokens": 100,
    "max_json_depth": 12,
    "max_body_bytes": 5000,
}
CHAT = ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2})
TEXT = ("/v1/completions", {"prompt": PROMPT, "max_tokens": 2})
RESPONSES = ("/v1/responses", {"input": "Hi", "max_output_tokens": 2})
BATCH = ("/v1/chat/completions/batch", {"messages": [MESSAGES], "max_tokens": 2})
ANTHROPIC = ("/v1/messages", {"messages": MESSAGES, "max_tokens": 2, "model": "smol"})


@pytest.fixture(scope="module")
def http(fake_engine: FakeClient) -> TestClient:
    from divserve.server import build_app

    fake_engine.fail_at = None
    app = asyncio.run(build_app(fake_engine, arguments(**LIMITS)))  # type: ignore[arg-type]
    return TestClient(app)


@pytest.mark.parametrize("body", [b"[1]", b"null", b"5", b'"n"', b'{"n": 2}', b"{", b""])
def test_bodies_that_ask_for_nothing_too_much_reach_the_route(body: bytes) -> None:
    """Whatever JSON they are, or are not."""
    http = TestClient(small_app(max_n=2))
    headers = {"content-type": "application/json"}
    assert http.post("/echo", content=body, headers=headers).json() == {"bytes": len(body)}


REFUSED: list[tuple[Any, dict[str, Any], str, str]] = [
    (CHAT, {"n": 3}, "n", "--max-n"),
    (TEXT, {"n": 3}, "n", "--max-n"),
    (TEXT, {"n": 10**30}, "n", "--max-n"),
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
    (CHAT, {"decoding": [guided(trace=True)], "max_tokens": 101}, "decoding.0.trace", "101"),
    (BATCH, {"messages": [MESSAGES] * 3}, "messages", "--max-batch-prompts"),
    (BATCH, {"n": 3}, "n", "--max-n"),
    (ANTHROPIC, {"stop_sequences": ["a", "b", "c"]}, "stop_sequences", "--max-stop-strings"),
    (ANTHROPIC, {"stop_sequences": ["abcdef"]}, "stop_sequences", "--max-stop-length"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("route", "fields", "param", "flag"), REFUSED)
def test_refused(
    http: TestClient, route: Any, fields: dict[str, Any], param: str, flag: str, stream: bool
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
    """Its flag is --max-logprobs, 20 by default."""
    path, body = route
    response = http.post(path, json={**body, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "greater than max allowed: 20" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", [None, "3", 3.5, [3], {"a": 3}, True, -1, 0])
@pytest.mark.parametrize("field", ["n", "best_of", "stop", "prompt", "messages", "stop_sequences"])
def test_other_types_are_for_the_route_to_refuse(field: str, value: Any) -> None:
    settings = EdgeSettings(**LIMITS)
    check_fields({field: value}.get, settings)


def test_code_in_a_request_is_never_run(http: TestClient) -> None:
    """A template is refused, and no field of a request reaches a loader of models."""
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


def test_rows() -> None:
    assert rows_of(CompletionsRequest(prompt="a")) == 1
    assert rows_of(CompletionsRequest(prompt=["a", "b"], n=3)) == 6
    assert rows_of(CompletionsRequest(prompt=[1, 2, 3])) == 1
    chat: Any = {"messages": MESSAGES, "n": 2}
    assert rows_of(ChatRequest(**chat, decoding=guided())) == 4
    same = [guided("adacad"), guided("kl_temperature")]
    assert rows_of(ChatRequest(**chat, decoding=same)) == 4
    other = [guided("adacad"), guided("kl_temperature") | {"guide": {"without": "What"}}]
    assert rows_of(ChatRequest(**chat, decoding=other)) == 6
    assert rows_of(ChatRequest(**chat, decoding=guided("entropy_temperature"))) == 2


def size_error(answer: bytes) -> None:
    error = json.loads(answer)["error"]
    assert error["code"] == "request_too_large"
    assert "more than 5000 bytes" in error["message"]
    assert "--max-body-bytes" in error["message"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("size", "status"), [(5000, 200), (5001, 413)])
def test_bodies_are_counted_in_bytes(declared: bool, size: int, status: int) -> None:
    http = TestClient(small_app(**LIMITS))
    body = b"x" * size
    content: Any = body if declared else iter([body[:3000], body[3000:]])
    response = http.post("/echo", content=content, headers={"content-type": "text/plain"})
    assert response.status_code == status
    if status == 413:
        size_error(response.content)
    else:
        assert response.json() == {"bytes": size}


def test_counting_ends_with_the_limit() -> None:
    """Not a chunk is read beyond it, and nothing of a body that declares too much."""

    async def test() -> None:
        app = small_app(**LIMITS)
        call = Call(app, "/echo", *[b"x" * 1000] * 100)
        assert await call.ended() == 413
        assert call.read == 6
        call = Call(app, "/echo", *[b"x" * 1000] * 100, headers={"content-length": "100000"})
        assert await call.ended() == 413
        assert call.read == 0
        call = Call(app, "/echo", b"x" * 6000, headers={"content-length": "5"})
        assert await call.ended() == 413
        call = Call(app, "/echo", b"x" * 6000, headers={"content-length": "-5"})
        assert await call.ended() == 413
        assert app.state.asked == 0

    asyncio.run(test())


def test_a_client_that_leaves_while_it_sends() -> None:
    async def test() -> None:
        app = small_app(rows=1, max_queue=0)
        call = Call(app, "/echo", b"x", leaves=True)
        await asyncio.wait({call.task})
        assert app.state.traffic.rows == 0
        assert len(app.state.traffic) == 0

    asyncio.run(test())


def nested(depth: int) -> bytes:
    return b'{"a":[' * (depth // 2) + b"[]" * (depth % 2) + b"]}" * (depth // 2)


@pytest.mark.parametrize(("depth", "status"), [(12, 200), (13, 400), (900, 400), (2001, 400)])
def test_depth(depth: int, status: int) -> None:
    http = TestClient(small_app(**{**LIMITS, "max_body_bytes": 10**6}))
    for headers in ({"content-type": "application/json"}, {"content-type": "application/ld+json"}):
        response = http.post("/echo", content=nested(depth), headers=headers)
        assert response.status_code == status
        if status == 400:
            assert response.json()["error"]["code"] == "invalid_json"
            assert "12 levels" in response.json()["error"]["message"]
    text = http.post("/echo", content=nested(depth), headers={"content-type": "text/plain"})
    assert text.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[[[[",
        b"]]]]",
        json.dumps({"a": "[[[[[[[[" * 9, "b": '\\"[[[[[[' * 9}).encode(),
        json.dumps([[[], {}, {"a": []}]] * 50).encode(),
        b'["' + b"[" * 100,
        b'"\\',
    ],
)
def test_shallow(body: bytes) -> None:
    check_depth(body, 4)


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\[]{}ü'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('["\\'), inner, max_size=3),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.booleans())
def test_depth_is_what_a_parser_finds(value: Any, escaped: bool) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode()
    check_depth(body, depth_of(value))
    if depth_of(value):
        with pytest.raises(InvalidRequest):
            check_depth(body, depth_of(value) - 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_deep_in_every_encoding_of_json(encoding: str) -> None:
    text = json.dumps({"ü\\": "[", "b": [[[[[5]]]]]}, ensure_ascii=False)
    check_depth(text.encode(encoding), 6)
    with pytest.raises(InvalidRequest):
        check_depth(text.encode(encoding), 5)


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b'\\"' * 8_000_000 + b"[" * 99,
        b"[1]," * 4_000_000,
        b'"",' * 5_000_000 + b"[" * 99,
        b'"[",[],' * 2_000_000,
    ],
    ids=["quotes", "lists", "strings", "both"],
)
def test_no_body_takes_long(body: bytes) -> None:
    start = time.perf_counter()
    check_depth(body, 64)
    assert time.perf_counter() - start < 2
