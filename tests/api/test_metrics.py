"""What the front end counts, on a scripted engine; and that the documentation lists all of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY, generate_latest

from divserve.errors import DecodingFailed, InvalidRequest
from tests.support.chat import MESSAGES, PROMPT, guided
from tests.support.fake_client import FakeClient, arguments
from tests.support.metrics import Changes, documented, families

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "smol", "messages": MESSAGES},
    TEXT: {"model": "smol", "prompt": PROMPT},
}


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
    engine.fail_at, engine.report = None, True
    return TestClient(app, raise_server_exceptions=False)


def registry() -> str:
    return generate_latest(REGISTRY).decode()


@pytest.fixture
def changes() -> Changes:
    """What the registry has counted since the test began."""
    return Changes(registry)


@pytest.mark.usefixtures("app")
def test_every_metric_is_documented_and_every_documented_one_is_there() -> None:
    registered, listed = families(registry()), documented()
    assert registered.keys() == listed.keys()
    assert {n: kind for n, (kind, _) in registered.items()} == {
        n: kind for n, (kind, _) in listed.items()
    }


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_guided_request_counts_itself_and_its_tokens(
    http: TestClient, engine: FakeClient, changes: Changes, path: str, stream: bool
) -> None:
    body = {**BODIES[path], "decoding": guided("adacad"), "stream": stream, "n": 2}
    assert http.post(path, json=body).status_code == 200
    tokens = 2 * len(engine.answer)
    assert changes.of("requests_total", method="adacad", outcome="ok") == 1
    assert changes.of("guided_steps_total") == tokens
    assert changes.of("unguided_steps_total") == 0
    for figure, value in {"kl": 0.5, "jsd": 0.25, "entropy": 1.0}.items():
        assert changes.of(f"{figure}_nats_count", method="adacad") == tokens
        assert changes.of(f"{figure}_nats_sum", method="adacad") == pytest.approx(value * tokens)
    assert changes.of("kl_nats_bucket", method="adacad", le="0.3") == 0
    assert changes.of("kl_nats_bucket", method="adacad", le="1.0") == tokens
    assert changes.of("guide_prompt_tokens_count") == 1
    assert changes.of("http_requests_total", route=path, method="POST", status="200") == 1
    assert changes.of("http_request_seconds_count", route=path) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_plain_request_is_counted_as_such(
    http: TestClient, changes: Changes, stream: bool
) -> None:
    assert http.post(TEXT, json={**BODIES[TEXT], "stream": stream}).status_code == 200
    assert changes.of("requests_total", method="plain", outcome="ok") == 1
    assert changes.of("guided_steps_total") == 0


def test_the_factor_of_a_stack(http: TestClient, engine: FakeClient, changes: Changes) -> None:
    stack = [guided("adacad"), guided("kl_temperature")]
    body = {**BODIES[CHAT], "decoding": stack, "temperature": 0.8}
    assert http.post(CHAT, json=body).status_code == 200
    name = "adacad+kl_temperature"
    assert changes.of("temperature_count", method=name) == len(engine.answer)
    assert changes.of("temperature_sum", method=name) == pytest.approx(0.8 * len(engine.answer))


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [(DecodingFailed("lost"), "failed"), (InvalidRequest("?"), "client_error")],
)
@pytest.mark.parametrize("fail_at", [0, 2])
def test_outcomes(
    http: TestClient, engine: FakeClient, changes: Changes, path: str, stream: bool, error: Any,
    outcome: str, fail_at: int,
) -> None:  # fmt: skip
    """Also in the middle of a stream, whose status has been sent: the error event counts."""
    engine.fail_at, engine.error = fail_at, error
    response = http.post(path, json={**BODIES[path], "decoding": guided(), "stream": stream})
    assert response.status_code == (200 if stream and fail_at else error.status)
    assert changes.of("requests_total", method="cad", outcome=outcome) == 1
    assert changes.of("guided_steps_total") == (fail_at if stream else 0)


def test_plain_streams_fail_too(http: TestClient, engine: FakeClient, changes: Changes) -> None:
    engine.fail_at, engine.error = 2, RuntimeError("broken")
    http.post(TEXT, json={**BODIES[TEXT], "stream": True})
    assert changes.of("requests_total", method="plain", outcome="failed") == 1


def test_tokens_without_statistics_are_counted(
    http: TestClient, engine: FakeClient, changes: Changes
) -> None:
    engine.report = False
    http.post(TEXT, json={**BODIES[TEXT], "decoding": guided()})
    assert changes.of("unguided_steps_total") == len(engine.answer)
    assert changes.of("broken_pairs_total", reason="front_end") == 1
    assert changes.of("guided_steps_total") == 0
    assert changes.of("requests_total", method="cad", outcome="failed") == 1


def test_refused_bodies_are_only_http(http: TestClient, changes: Changes) -> None:
    bad = {**BODIES[TEXT], "decoding": {"method": "x" * 1000}}
    assert http.post(TEXT, json=bad).status_code == 400
    assert changes.of("http_requests_total", route=TEXT, method="POST", status="400") == 1
    assert "xxx" not in registry()


@pytest.mark.parametrize(
    ("verb", "path", "route", "method"),
    [
        ("GET", "/v1/models", "/v1/models", "GET"),
        ("GET", "/nowhere/4711", "other", "GET"),
        ("BREW", "/v1/models", "/v1/models", "OTHER"),
        ("GET", "/metrics", "/metrics", "GET"),
    ],
)
def test_labels_are_ours_not_the_clients(
    http: TestClient, changes: Changes, verb: str, path: str, route: str, method: str
) -> None:
    status = str(http.request(verb, path).status_code)
    assert changes.of("http_requests_total", route=route, method=method, status=status) == 1
    assert "nowhere" not in registry()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(app: Any, engine: FakeClient, changes: Changes, stream: bool) -> None:
    """It hangs up before or after the first token; the tokens it got are counted."""
    body = {**BODIES[TEXT], "decoding": guided(), "stream": stream}
    asyncio.run(_leave(app, body, engine, after=2 if stream else 0))
    assert changes.of("requests_total", method="cad", outcome="aborted") == 1
    assert changes.of("http_requests_total", route=TEXT, method="POST", status="499") == 1
    assert changes.of("guided_steps_total") == (2 if stream else 0)


async def _leave(app: Any, body: dict[str, Any], engine: FakeClient, after: int) -> None:
    """Calls the app through ASGI; leaves when the engine has made some tokens and stalls."""
    gone, sent = asyncio.Event(), [json.dumps(body).encode()]
    engine.stall_at, engine.stalled = after, gone.set

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": TEXT, "raw_path": TEXT.encode(), "scheme": "http",
        "root_path": "", "query_string": b"", "headers": headers, "http_version": "1.1",
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "asgi": {"spec_version": "2.3"},
    }  # fmt: skip
    try:
        await asyncio.wait_for(app(scope, receive, send), timeout=20)
    finally:
        engine.stall_at = None
