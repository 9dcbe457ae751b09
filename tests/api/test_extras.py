"""Methods of two models over HTTP, on a scripted engine: orders, accounts, names and refusals."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY

from divserve.decoding import STATISTICS
from divserve.errors import Unavailable
from divserve.startup.extras import Extras
from tests.support.chat import MESSAGES, PROMPT
from tests.support.fake_client import ROW, FakeClient, arguments

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

SWITCH = {"method": "entropy_switch", "threshold": 0.5, "trace": True}
CHAT = "/v1/chat/completions"
URL = {"url": "data:image/png;base64,AAAA"}
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}]


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return FakeClient(AsyncEngineArgs.from_cli_args(arguments()).create_engine_config())


def served(engine: FakeClient, extras: Extras) -> TestClient:
    from divserve.server import build_app

    args = arguments()
    args.extras = extras
    return TestClient(asyncio.run(build_app(engine, args)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def app(engine: FakeClient) -> TestClient:
    return served(engine, Extras({"amateur": "drop:4"}, small="tiny"))


@pytest.fixture
def http(app: TestClient, engine: FakeClient) -> TestClient:
    engine.orders.clear()
    engine.fail_at, engine.models, engine.on_small = None, [], False
    engine.engines, engine.row = {"large": True, "small": True}, ROW
    return app


def body(decoding: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": MESSAGES, "decoding": decoding, **fields}


def refusal(http: TestClient, path: str, sent: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=sent)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_contrastive_orders_the_amateur(http: TestClient, engine: FakeClient) -> None:
    answer = http.post(CHAT, json=body({"method": "contrastive", "beta": 1})).json()
    (order,) = engine.orders
    assert order["amateurs"] == ("amateur",)
    assert order["guides"] == []
    account = answer["choices"][0]["decoding"]
    assert account["guide_prompt_tokens"] == 0
    assert {"overlap", "agree", "candidates"} <= account["mean"].keys()


def test_overlap_and_agreement_are_counted(http: TestClient, engine: FakeClient) -> None:
    row = dict.fromkeys(STATISTICS, 0.25)
    engine.row = tuple({**row, "agree": 1.0}.values())
    names = ("divserve_draft_overlap_sum", "divserve_amateur_tokens_total")

    def counted() -> tuple[float, float]:
        total = REGISTRY.get_sample_value(names[0]) or 0
        agreed = REGISTRY.get_sample_value(names[1], {"agrees": "yes"}) or 0
        return total, agreed

    before = counted()
    assert http.post(CHAT, json=body({"method": "contrastive"})).status_code == 200
    after, tokens = counted(), len(engine.answer)
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((0.25 * tokens, tokens))


@pytest.mark.parametrize("stream", [False, True])
def test_the_account_of_a_switched_answer(
    http: TestClient, engine: FakeClient, stream: bool
) -> None:
    engine.models = ["small", "small", "large", "small"][: len(engine.answer)]
    answer = http.post(CHAT, json=body(SWITCH, stream=stream))
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]
        accounts = [c["decoding"] for e in events for c in e["choices"] if "decoding" in c]
        trace = [entry for account in accounts for entry in account["trace"]]
        account = accounts[-1]
    else:
        account = answer.json()["choices"][0]["decoding"]
        trace = account["trace"]
    assert account["tokens"] == {"small": 3, "large": 1}
    assert account["switches"] == 2
    # The fake client's small model has a quarter of the parameters.
    assert account["compute_saved"] == pytest.approx(3 * 0.75 / 4)
    assert [entry["model"] for entry in trace] == ["small", "small", "large", "small"]
    assert engine.orders[0]["switch"]["threshold"] == 0.5


@pytest.mark.parametrize(
    ("decoding", "flags"),
    [
        ({"method": "contrastive"}, "--amateur"),
        ({"method": "proxy_tuning"}, "--amateur and --tuned"),
        ({"method": "dexperts"}, "--amateur and --tuned"),
        ({"method": "entropy_switch"}, "--small"),
    ],
)
def test_a_missing_model_is_named(engine: FakeClient, decoding: Any, flags: str) -> None:
    alone = served(engine, Extras())
    error = refusal(alone, CHAT, body(decoding))
    assert error["message"].endswith(f"without {flags}.")
    assert (error["param"], error["code"]) == ("decoding.method", "method_unavailable")
    error = refusal(alone, CHAT, body([{"method": "entropy_temperature"}, {"method": "dexperts"}]))
    assert error["param"] == "decoding.1.method"
    there = {m["method"]: m["available"] for m in alone.get("/v1/decoding/methods").json()["data"]}
    assert there[decoding["method"]] is False
    assert there["cad"] is True


def test_a_half_equipped_server_names_what_is_left(http: TestClient) -> None:
    error = refusal(http, CHAT, body({"method": "dexperts"}))
    assert error["message"].endswith("without --tuned.")


@pytest.mark.parametrize("decoding", [None, {"method": "entropy_temperature"}])
def test_the_small_model_has_a_name(http: TestClient, engine: FakeClient, decoding: Any) -> None:
    for stream in (False, True):
        answer = http.post(CHAT, json=body(decoding, model="smol@small", stream=stream))
        assert answer.status_code == 200
        assert '"model":"smol@small"' in answer.text
        assert engine.on_small
    text = {"model": "smol@small", "prompt": PROMPT, "decoding": decoding}
    assert http.post("/v1/completions", json=text).json()["model"] == "smol@small"
    assert engine.on_small
    assert http.post(CHAT, json=body(decoding)).json()["model"] == "smol"
    assert not engine.on_small


@pytest.mark.parametrize("method", ["entropy_switch", "contrastive"])
def test_methods_of_two_models_need_the_served_one(http: TestClient, method: str) -> None:
    error = refusal(http, CHAT, body({"method": method}, model="smol@small"))
    assert error["param"] == "model"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"use_beam_search": True, "n": 2}, "use_beam_search"),
        ({"messages": PICTURE}, "messages"),
    ],
)
def test_what_only_the_served_model_can_take(
    http: TestClient, fields: dict[str, Any], param: str
) -> None:
    """None of it is silently answered by the other model."""
    error = refusal(http, CHAT, body(None, model="smol@small") | fields)
    assert error["param"] == param


def test_the_small_name_is_refused_where_it_would_be_ignored(http: TestClient) -> None:
    error = refusal(http, "/invocations", {"model": "smol@small", "prompt": "hello"})
    assert "/invocations does not take" in error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": MESSAGES, "prompt_logprobs": 1}, "prompt_logprobs"),
        (CHAT, {"messages": MESSAGES, "prompt_logprobs": 0}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": PROMPT, "echo": True}, "echo"),
    ],
)
def test_what_two_models_cannot_do(
    http: TestClient, path: str, fields: dict[str, Any], param: str
) -> None:
    error = refusal(http, path, {"model": "smol", "decoding": SWITCH, **fields})
    assert error["param"] == param


def test_contrastive_beside_a_temperature_with_a_guide(
    http: TestClient, engine: FakeClient
) -> None:
    """Two second streams: the amateur for the contrast, the guide for the temperature."""
    stack = [
        {"method": "contrastive"},
        {"method": "kl_temperature", "guide": {"messages": MESSAGES}},
    ]
    engine.row = (*ROW, *ROW)
    answer = http.post(CHAT, json=body(stack, temperature=1.0))
    assert answer.status_code == 200, answer.text
    (order,) = engine.orders
    assert order["amateurs"] == ("amateur",)
    assert len(order["guides"]) == 1
    assert order["temperature_program"] is not None


def test_health_tells_of_both_engines(http: TestClient, engine: FakeClient) -> None:
    assert http.get("/health").json() == {
        "status": "ok",
        "engines": {"large": "ok", "small": "ok"},
    }
    engine.engines = {"large": True, "small": False}
    assert 'divserve_engine_up{engine="small"} 0.0' in http.get("/metrics").text
    degraded = http.get("/health")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    engine.engines = {"large": False, "small": True}
    dead = http.get("/health")
    assert (dead.status_code, dead.json()["status"]) == (503, "dead")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopped_small_engine_is_a_503(
    http: TestClient, engine: FakeClient, stream: bool
) -> None:
    engine.fail_at, engine.error = 0, Unavailable("stopped", param="model")
    answer = http.post(CHAT, json=body(None, model="smol@small", stream=stream))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_unavailable"
