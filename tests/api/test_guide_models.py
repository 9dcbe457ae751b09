"""``guide.model``: another adapter, or the served model alone, reads the guide."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient
from vllm.lora.request import LoRARequest

from divserve.decoding import presets
from tests.support.fake_client import ROW, FakeClient, arguments

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

DOCUMENT, QUESTION = "The capital of France is Lyon.", "What is the capital of France?"
MESSAGES = [{"role": "user", "content": f"{DOCUMENT} {QUESTION}"}]
SAME = {"method": "cad", "guide": {"model": "smol"}}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def app(fake_engine: FakeClient) -> Any:
    from divserve.server import build_app

    args = arguments()
    args.decodings = presets.load([], {"tuning": SAME, "lost": {**SAME, "guide": {"model": "no"}}})
    return asyncio.run(build_app(fake_engine, args))  # type: ignore[arg-type]


@pytest.fixture
def http(app: Any, fake_engine: FakeClient, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    fake_engine.orders.clear()
    loaded = {"law": LoRARequest("law", 1, "path/law"), "tax": LoRARequest("tax", 2, "path/tax")}
    monkeypatch.setattr(app.state.openai_serving_models, "lora_requests", loaded)
    return TestClient(app)


def ask(http: TestClient, decoding: Any, model: str = "law", **body: Any) -> Any:
    body = {"model": model, "messages": MESSAGES, "decoding": decoding, **body}
    return http.post(CHAT, json=body)


def order_of(http: TestClient, engine: FakeClient, decoding: Any, **body: Any) -> dict[str, Any]:
    """The engine's order, and the guide's text."""
    response = ask(http, decoding, **body)
    assert response.status_code == 200, response.text
    (order,) = engine.orders
    text = [engine.renderer.tokenizer.decode(guide) for guide in order["guides"]]
    return {"adapters": [*map(as_list, order["adapters"])], "text": text}


def as_list(adapter: Any) -> Any:
    """Name, id and path of an adapter."""
    return None if adapter is None else list(adapter)[:3]


def error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


def test_alone_it_means_the_same_prompt(http: TestClient, fake_engine: FakeClient) -> None:
    made = order_of(http, fake_engine, SAME)
    assert made["adapters"] == [[]]
    assert DOCUMENT in made["text"][0]
    assert QUESTION in made["text"][0]


@pytest.mark.parametrize(
    ("model", "guide", "adapters"),
    [
        ("law", "tax", [["tax", 2, "path/tax"]]),
        ("smol", "law", [["law", 1, "path/law"]]),
        ("law", "law", []),
        ("smol", "smol", []),
        ("smol@tuning", "smol", []),
        ("", "smol", []),
    ],
)
def test_names(
    http: TestClient, fake_engine: FakeClient, model: str, guide: str, adapters: list[Any]
) -> None:
    """The request's own model is no other one; so a server without adapters takes its name."""
    decoding = {"method": "adacad", "guide": {"model": guide}}
    assert order_of(http, fake_engine, decoding, model=model)["adapters"] == adapters


def test_the_adapter_of_an_unchecked_name_is_taken_as_given(
    http: TestClient, fake_engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM may load the request's model later."""
    monkeypatch.setenv("VLLM_SKIP_MODEL_NAME_VALIDATION", "1")
    assert order_of(http, fake_engine, SAME, model="unknown")["adapters"] == [[]]


@pytest.mark.parametrize(
    "guide", [{"without": f"{DOCUMENT} "}, {"messages": [{"role": "user", "content": QUESTION}]}]
)
def test_a_text_under_another_model(
    http: TestClient, fake_engine: FakeClient, guide: dict[str, Any]
) -> None:
    made = order_of(http, fake_engine, {"method": "cad", "guide": {**guide, "model": "tax"}})
    assert made["adapters"] == [["tax", 2, "path/tax"]]
    assert DOCUMENT not in made["text"][0]
    assert QUESTION in made["text"][0]


@pytest.mark.parametrize(("reader", "status"), [("tax", 200), ("law", 400)])
def test_the_same_text_under_another_model(http: TestClient, reader: str, status: int) -> None:
    """The other model makes the difference, where the template has this system message itself."""
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    messages = [{"role": "system", "content": own}, *MESSAGES]
    decoding = {"method": "cad", "guide": {"role": "system", "model": reader}}
    assert ask(http, decoding, messages=messages).status_code == status


def test_documents_under_another_model(http: TestClient, fake_engine: FakeClient) -> None:
    parts = [{"type": "text", "text": f"{DOCUMENT} ", "name": "document"}]
    parts.append({"type": "text", "text": QUESTION})
    made = order_of(
        http,
        fake_engine,
        {"method": "cad", "guide": {"documents": True, "model": "smol"}},
        messages=[{"role": "user", "content": parts}],
    )
    assert made["adapters"] == [[]]
    assert DOCUMENT not in made["text"][0]


def test_noise_under_another_model(http: TestClient, fake_engine: FakeClient) -> None:
    """Alone, ``guide.model`` leaves the instruction as it is."""
    body = {"method": "instructive", "guide": {"model": "smol"}, "instruction": QUESTION}
    made = order_of(http, fake_engine, {**body, "noise": "null"})
    assert made["adapters"] == [[]]
    assert QUESTION not in made["text"][0]
    fake_engine.orders.clear()
    whole = order_of(http, fake_engine, {"method": "instructive", "guide": {"model": "smol"}})
    assert QUESTION in whole["text"][0]


def test_noise_and_a_text_are_refused_still(http: TestClient) -> None:
    guide = {"without": DOCUMENT, "model": "smol"}
    refused = error(ask(http, {"method": "instructive", "guide": guide, "noise": "null"}))
    assert "not both" in refused["message"]


def test_cfg_reads_the_prompt_under_another_model(
    http: TestClient, fake_engine: FakeClient
) -> None:
    made = order_of(http, fake_engine, {"method": "cfg", "guide": {"model": "smol"}})
    assert QUESTION in made["text"][0]


@pytest.mark.parametrize(
    ("guide", "instruction"), [({"model": "smol"}, None), ({"model": "smol"}, QUESTION)]
)
def test_completions(
    http: TestClient, fake_engine: FakeClient, guide: dict[str, Any], instruction: str | None
) -> None:
    """One prompt, several, and token ids."""
    decoding: dict[str, Any] = {"method": "instructive", "guide": guide}
    prompts: list[Any] = [f"A. {QUESTION}", f"B. {QUESTION}"]
    if instruction is not None:
        decoding |= {"instruction": instruction, "noise": "null"}
    response = http.post(
        COMPLETIONS, json={"model": "law", "prompt": prompts, "decoding": decoding}
    )
    assert response.status_code == 200, response.text
    assert [order["adapters"] for order in fake_engine.orders] == [((),)] * 2
    text = [fake_engine.renderer.tokenizer.decode(o["guides"][0]) for o in fake_engine.orders]
    assert text == (["A. ", "B. "] if instruction else prompts)


def test_completions_of_token_ids(http: TestClient, fake_engine: FakeClient) -> None:
    body = {"model": "law", "prompt": [5, 6, 7], "decoding": SAME}
    assert http.post(COMPLETIONS, json=body).status_code == 200
    (order,) = fake_engine.orders
    assert (order["guides"], order["adapters"]) == ([[5, 6, 7]], ((),))


def test_the_same_text_under_two_models_is_two_streams(
    http: TestClient, fake_engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine, "row", ROW * 2)
    methods = [SAME, {"method": "kl_temperature", "guide": {"model": "tax"}}]
    response = ask(http, methods)
    (order,) = fake_engine.orders
    assert order["guides"][0] == order["guides"][1]
    assert [*map(as_list, order["adapters"])] == [[], ["tax", 2, "path/tax"]]
    assert order["temperature_program"] is not None
    account = response.json()["choices"][0]["decoding"]
    assert account["guide_models"] == {"cad": "smol", "kl_temperature": "tax"}
    assert "kl_temperature.kl" in account["mean"]


def test_noise_is_not_the_stream_of_the_whole_prompt(
    http: TestClient, fake_engine: FakeClient
) -> None:
    noise = {"method": "instructive", "instruction": QUESTION, "guide": {"model": "smol"}}
    ask(http, [noise, {"method": "kl_temperature", "guide": {"model": "smol"}}])
    (order,) = fake_engine.orders
    assert len(order["guides"]) == 2


def test_one_guide_for_two_methods(http: TestClient, fake_engine: FakeClient) -> None:
    ask(http, [SAME, {"method": "kl_temperature"}])
    (order,) = fake_engine.orders
    assert (len(order["guides"]), order["adapters"]) == (1, ((),))


def test_the_account_names_the_model(http: TestClient) -> None:
    account = ask(http, SAME).json()["choices"][0]["decoding"]
    assert account["guide_models"] == {"cad": "smol"}
    plain = ask(http, {"method": "cad", "guide": {"without": DOCUMENT}})
    assert "guide_models" not in plain.json()["choices"][0]["decoding"]


def test_an_unknown_model(http: TestClient) -> None:
    refused = error(ask(http, {"method": "cad", "guide": {"model": "other"}}), 404)
    assert refused == {
        "message": "The model 'other' does not exist.",
        "type": "invalid_request_error",
        "param": "decoding.guide.model",
        "code": "model_not_found",
    }
    in_list = ask(
        http, [{"method": "entropy_temperature"}, {"method": "cad", "guide": {"model": "x"}}]
    )
    assert error(in_list, 404)["param"] == "decoding.1.guide.model"


@pytest.mark.parametrize(
    ("name", "told"), [("smol@tuning", "without '@…'"), ("smol@small", "--amateur")]
)
def test_aliases(http: TestClient, name: str, told: str) -> None:
    refused = error(ask(http, {"method": "cad", "guide": {"model": name}}))
    assert told in refused["message"]
    assert refused["param"] == "decoding.guide.model"


def test_the_small_model_has_no_adapters(http: TestClient) -> None:
    refused = error(ask(http, SAME, model="smol@small"))
    assert "small model has no adapters" in refused["message"]
    assert refused["param"] == "decoding.guide.model"


@pytest.mark.parametrize("method", ["entropy_switch", "look_back", "contrastive"])
def test_methods_without_a_guide(http: TestClient, method: str) -> None:
    refused = error(ask(http, {"method": method, "guide": {"model": "smol"}}))
    assert "no second stream" in refused["message"]


@pytest.mark.parametrize(
    ("guide", "told"),
    [
        ({}, "or 'model' alone"),
        ({"model": ""}, "at least 1 character"),
        ({"model": "x" * 257}, "at most 256 characters"),
        ({"model": "smol", "without": "a", "prompt": "b"}, "exactly one of"),
    ],
)
def test_malformed(http: TestClient, guide: dict[str, Any], told: str) -> None:
    assert told in error(ask(http, {"method": "cad", "guide": guide}))["message"]


def test_a_preset(http: TestClient, fake_engine: FakeClient) -> None:
    body = {"model": "smol@tuning", "messages": MESSAGES}
    assert http.post(CHAT, json=body).status_code == 200
    refused = error(http.post(CHAT, json={**body, "model": "smol@lost"}), 404)
    assert refused["message"] == "The preset of smol@lost: The model 'no' does not exist."


def test_rows_are_counted(http: TestClient, app: Any) -> None:
    from divserve.api.limits import rows_of
    from divserve.api.requests import ChatRequest

    def rows(*methods: Any) -> int:
        return rows_of(ChatRequest(model="law", messages=MESSAGES, decoding=[*methods]))

    kl = {"method": "kl_temperature", "guide": {"model": "smol"}}
    assert rows(SAME) == rows(SAME, kl) == 2
    assert rows(SAME, {**kl, "guide": {"model": "tax"}}) == 3
    noise = {"method": "instructive", "noise": "null", "guide": {"model": "smol"}}
    assert rows(noise, kl) == 3


def test_the_schema_has_it(http: TestClient) -> None:
    guide = http.get("/openapi.json").json()["components"]["schemas"]["Guide"]
    assert "LoRA adapters" in guide["properties"]["model"]["description"]


def test_a_stream_ends_with_it(http: TestClient) -> None:
    body = {"model": "law", "messages": MESSAGES, "decoding": SAME, "stream": True}
    assert '"guide_models":{"cad":"smol"}' in http.post(CHAT, json=body).text.replace(": ", ":")
