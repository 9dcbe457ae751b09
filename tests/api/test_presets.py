"""Presets behind model aliases, stacks and documents, on a scripted engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient

from divserve.api.requests import ChatRequest
from divserve.decoding import presets
from tests.support.fake_client import ROW, FakeClient, arguments

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

DOCUMENT = "The capital of France is Lyon."
QUESTION = "What is the capital of France?"
PARTS = [
    {"type": "text", "text": f"{DOCUMENT} ", "name": "document"},
    {"type": "text", "text": QUESTION},
]
MARKED = [{"role": "user", "content": PARTS}]
CFG = {"method": "cfg", "scale": 2.0}


@pytest.fixture(scope="module")
def engine() -> FakeClient:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return FakeClient(AsyncEngineArgs.from_cli_args(arguments()).create_engine_config())


@pytest.fixture(scope="module")
def app(engine: FakeClient) -> Any:
    from divserve.server import build_app

    args = arguments()
    warm = {"method": "entropy_temperature", "trace": True}
    args.decodings = presets.load([], {"strong": CFG, "warm": warm})
    return asyncio.run(build_app(engine, args))  # type: ignore[arg-type]


@pytest.fixture
def http(app: Any, engine: FakeClient) -> TestClient:
    engine.orders.clear()
    return TestClient(app)


def ask(http: TestClient, **body: Any) -> Any:
    body = {"model": "smol", "messages": MARKED, **body}
    return http.post("/v1/chat/completions", json=body)


def error(response: Any) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


def test_aliases_are_listed(http: TestClient) -> None:
    models = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert models == [
        "smol",
        "smol@faithful",
        "smol@diverse",
        "smol@strong",
        "smol@warm",
        "smol@small",
    ]
    listed = http.get("/v1/decoding/presets").json()["data"]
    assert listed[-2] == {"preset": "strong", "decoding": CFG}


def test_a_preset_decodes(http: TestClient, engine: FakeClient) -> None:
    answer = ask(http, model="smol@faithful").json()
    assert answer["model"] == "smol@faithful"
    account = answer["choices"][0]["decoding"]
    assert account["method"] == "adacad+kl_temperature"
    (order,) = engine.orders
    (guide,) = order["guides"]
    text = engine.renderer.tokenizer.decode(guide)
    assert QUESTION in text
    assert DOCUMENT not in text
    assert account["guide_prompt_tokens"] == len(guide)


def test_a_preset_does_not_have_the_request_validated_again(
    http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation of a large body stops the event loop; once is enough."""
    monkeypatch.setattr(ChatRequest, "model_validate", Mock(side_effect=AssertionError))
    answer = ask(http, model="smol@faithful").json()
    assert answer["choices"][0]["decoding"]["method"] == "adacad+kl_temperature"


def test_a_preset_streams_under_its_alias(http: TestClient) -> None:
    lines = ask(http, model="smol@strong", stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {"smol@strong"}
    assert chunks[-1]["choices"][0]["decoding"]["method"] == "cfg"


def test_text_completions_take_presets(http: TestClient) -> None:
    answer = http.post("/v1/completions", json={"model": "smol@strong", "prompt": "A b"}).json()
    assert (answer["model"], answer["choices"][0]["decoding"]["method"]) == ("smol@strong", "cfg")
    refused = http.post("/v1/completions", json={"model": "smol@faithful", "prompt": "A b"})
    missing = error(refused)
    assert missing["message"].startswith("The preset of smol@faithful: No document was found.")
    assert missing["param"] == "decoding.0.guide.first_of"
    marked = {"model": "smol@faithful", "prompt": f"<document>{DOCUMENT}</document>{QUESTION}"}
    (choice,) = http.post("/v1/completions", json=marked).json()["choices"]
    assert set(choice["decoding"]["guides"].values()) == {"between"}


def test_the_requests_own_field_wins(http: TestClient, engine: FakeClient) -> None:
    own = ask(http, model="smol@strong", decoding={"method": "cfg", "scale": 3}).json()
    assert own["model"] == "smol@strong"
    plain = ask(http, model="smol@strong", decoding=None).json()
    assert "decoding" not in plain["choices"][0]
    assert [order and order["program"][1] for order in engine.orders] == [2.0, None]


def test_a_preset_obeys_the_rules_of_the_field(http: TestClient) -> None:
    question = [{"role": "user", "content": QUESTION}]
    missing = error(ask(http, model="smol@faithful", messages=question))
    assert missing["param"] == "decoding.0.guide.first_of"
    assert '"name": "document"' in missing["message"]
    assert missing["message"].startswith("The preset of smol@faithful: No document was found")
    own = [{"method": "cad", "guide": {"documents": True}}]
    asked = error(ask(http, model="smol@faithful", messages=question, decoding=own))
    assert asked["message"].startswith("The request has no document")
    many = error(ask(http, model="smol@faithful", n=1000))
    assert many["message"].startswith("n is 1000")
    assert "beam" in error(ask(http, model="smol@strong", use_beam_search=True))["message"]
    assert ask(http, model="smol@nothing").status_code == 404


def test_an_alias_elsewhere_is_refused(http: TestClient) -> None:
    refused = error(http.post("/invocations", json={"model": "smol@strong", "prompt": "a"}))
    assert "alias of a preset" in refused["message"]


def test_an_alias_can_be_tokenized(http: TestClient) -> None:
    body = {"model": "smol@strong", "prompt": "a"}
    assert http.post("/tokenize", json=body).status_code == 200
    assert error(http.post("/tokenize", json={**body, "decoding": CFG}))["param"] == "decoding"


def test_the_template_must_show_the_documents(http: TestClient) -> None:
    """SmolLM2's template does not, so the guide would equal the prompt."""
    refused = error(
        ask(
            http,
            model="smol@diverse",
            messages=[{"role": "user", "content": QUESTION}],
            documents=[{"title": "a", "text": DOCUMENT}],
        )
    )
    assert "does not render 'documents'" in refused["message"]


def test_a_list_of_one_is_that_method(http: TestClient, engine: FakeClient) -> None:
    one, several = (ask(http, decoding=value).json() for value in (CFG, [CFG]))
    assert one["choices"] == several["choices"]
    assert engine.orders[0] == engine.orders[1]


@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        ([CFG, {"method": "cad", "guide": {"without": DOCUMENT}}], "decoding"),
        ([CFG, {"method": "kl_temperature", "sigma": -1}], "decoding.1.sigma"),
        ([{"method": "cad", "guide": {"without": "nowhere"}}], "decoding.0.guide.without"),
        ([{"method": "cad", "guide": {"prompt": "x"}}], "decoding.0.guide.prompt"),
        ([{"method": "kl_temperature"}], "decoding.0.guide"),
        ([], "decoding"),
        ({"method": "vdgd", "grounding": " "}, "decoding.grounding"),
        ({"method": "vdgd", "grounding": "word " * 600}, "decoding.grounding"),
        ({"method": "entropy_temperature", "guide": {"documents": True}}, "decoding.guide"),
        ({"method": "instructive", "noise": "null"}, "decoding.noise"),
        ({"method": "instructive", "instruction": "Sing!"}, "decoding.instruction"),
    ],
)
def test_refusals_name_the_field(http: TestClient, decoding: Any, param: str) -> None:
    assert error(ask(http, decoding=decoding))["param"] == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "json_object"}),
        ("allowed_token_ids", [5, 6]),
        ("bad_words", ["no"]),
        ("min_tokens", 2),
    ],
)
def test_what_drops_tokens_and_what_forbids_them(
    http: TestClient, engine: FakeClient, field: str, value: Any
) -> None:
    """They compose: what the worker does then is in ``tests/engine/test_dropped.py``."""
    for method in ("uscd", "linear_alignment"):
        dropping = {"method": method, "guide": {"documents": True}}
        answer = ask(http, decoding=dropping, **{field: value})
        assert answer.status_code == 200, answer.text
        assert engine.orders[-1] is not None


def test_two_guides_are_two_streams(http: TestClient, engine: FakeClient) -> None:
    """Their figures are distinguished, and the tokens of both streams are counted."""
    engine.row = (*ROW, *ROW)
    decoding = [
        {"method": "adacad", "guide": {"documents": True}},
        {"method": "kl_temperature", "guide": {"without": QUESTION}, "trace": True},
    ]
    account = ask(http, decoding=decoding).json()["choices"][0]["decoding"]
    engine.row = ROW
    assert {"kl", "kl_temperature.kl", "temperature"} < account["mean"].keys()
    assert account["guide_prompt_tokens"] == sum(map(len, engine.orders[0]["guides"]))
    assert len(engine.orders[0]["guides"]) == 2
    assert "kl_temperature.jsd" in account["trace"][0]


def test_a_grounding_text_is_a_stream(http: TestClient, engine: FakeClient) -> None:
    decoding = {"method": "vdgd", "grounding": DOCUMENT, "reduce": "avg"}
    account = ask(http, decoding=decoding).json()["choices"][0]["decoding"]
    (order,) = engine.orders
    assert engine.renderer.tokenizer.decode(order["grounding"]) == DOCUMENT
    assert (order["guides"], order["average"]) == ([], True)
    assert account["guide_prompt_tokens"] == len(order["grounding"])


def test_settings_file(tmp_path: Path) -> None:
    """The section ``presets`` next to vLLM's own settings."""
    from divserve.startup.launch import parse

    settings, preset = tmp_path / "settings.yaml", tmp_path / "soft.json"
    settings.write_text("port: 8123\npresets:\n  strong: {method: cfg, scale: 2}\n")
    preset.write_text('{"method": "entropy_temperature"}')
    args = parse(["some/model", "--config", str(settings), "--preset", f"soft={preset}"])
    assert args.port == 8123
    assert args.decodings["strong"] == {"method": "cfg", "scale": 2}
    assert args.decodings["soft"] == {"method": "entropy_temperature"}


CHATS: dict[str, list[dict[str, Any]]] = {
    "between": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"<document>{DOCUMENT}</document> {QUESTION}"},
    ],
    "marked": [{"role": "system", "content": "Be brief."}, *MARKED],
    "role": [{"role": "system", "content": DOCUMENT}, {"role": "user", "content": QUESTION}],
}


@pytest.mark.parametrize("place", CHATS)
def test_an_ordinary_chat(http: TestClient, engine: FakeClient, place: str) -> None:
    """The guide lacks the document wherever it stands, and the account says where that was."""
    (choice,) = ask(http, model="smol@faithful", messages=CHATS[place]).json()["choices"]
    assert choice["decoding"]["guides"] == {"adacad": place, "kl_temperature": place}
    (guide,) = engine.orders[0]["guides"]
    text = engine.renderer.tokenizer.decode(guide)
    assert QUESTION in text
    assert DOCUMENT not in text
    assert "<document>" not in text


def test_a_preset_by_its_name(http: TestClient, engine: FakeClient) -> None:
    answers = [
        ask(http, decoding="faithful"),
        ask(http, decoding={"preset": "faithful"}),
        ask(http, model="smol@faithful"),
    ]
    choices = [answer.json()["choices"] for answer in answers]
    assert choices[0] == choices[1] == choices[2]
    assert engine.orders[0] == engine.orders[1] == engine.orders[2]
    assert answers[0].json()["model"] == "smol"
    traced = ask(http, decoding={"preset": "strong", "trace": True}).json()["choices"][0]
    assert (traced["decoding"]["method"], len(traced["decoding"]["trace"])) == ("cfg", 4)
    assert "trace" in ask(http, decoding="warm").json()["choices"][0]["decoding"]
    untraced = ask(http, decoding={"preset": "warm", "trace": False}).json()["choices"][0]
    assert "trace" not in untraced["decoding"]


def test_the_schema_shows_names_and_weights(http: TestClient) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    shown = json.dumps(schemas["ChatRequest"]["properties"]["decoding"])
    name = {"type": "string", "maxLength": 128, "minLength": 1}
    assert json.dumps({"anyOf": [name, {"$ref": "#/components/schemas/PresetRef"}]}) in shown
    weight = schemas["PresetRef"]["properties"]["context_weight"]["anyOf"]
    assert {"type": "number", "maximum": 2.0, "minimum": 0.0} in weight


def test_the_template_may_put_the_same_text_there(http: TestClient) -> None:
    """SmolLM2's has a system message of its own, so the guide would equal the prompt."""
    own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    messages = [{"role": "system", "content": own}, {"role": "user", "content": QUESTION}]
    refused = error(ask(http, model="smol@diverse", messages=messages))
    assert refused["param"] == "decoding.guide"
    assert refused["message"].startswith("The preset of smol@diverse: Without the part that the")
    guide = {"role": "system", "if_missing": "plain"}
    plain = ask(http, decoding={"method": "cad", "guide": guide}, messages=messages).json()
    account = plain["choices"][0]["decoding"]
    assert account["applied_steps"] == 0
    assert "Without the part" in account["reason"]
    in_full = {"method": "cad", "guide": {"messages": messages}}
    assert ask(http, decoding=in_full, messages=messages).status_code == 200


@pytest.mark.parametrize(
    ("decoding", "model", "method"),
    [
        ({"context_weight": "auto"}, "smol", "adacad+kl_temperature"),
        ({"context_weight": 0.5}, "smol", "cad+kl_temperature"),
        ({"preset": "diverse", "context_weight": 2}, "smol", "cad+kl_temperature"),
        ({"context_weight": 1}, "smol@diverse", "cad+kl_temperature"),
        ({"preset": "strong", "context_weight": 0, "guide": {"documents": True}}, "smol", "cad"),
    ],
)
def test_the_weight_of_the_document(
    http: TestClient, engine: FakeClient, decoding: Any, model: str, method: str
) -> None:
    """It stands for the contrast; the rest of the preset stays."""
    answer = ask(http, model=model, decoding=decoding)
    assert answer.json()["choices"][0]["decoding"]["method"] == method
    weight = decoding["context_weight"]
    if weight != "auto":
        explicit = [{"method": "cad", "alpha": weight, "guide": {"documents": True}}]
        if "+" in method:
            sigma = {"sigma": 0.5} if "diverse" in f"{decoding} {model}" else {}
            explicit.append({"method": "kl_temperature", **sigma})
        ask(http, decoding=explicit)
        assert engine.orders[0] == engine.orders[1]


def test_mistakes_about_presets(http: TestClient) -> None:
    unknown = error(ask(http, decoding="cad"))
    assert unknown["param"] == "decoding.preset"
    assert "the presets are faithful, diverse, strong, warm" in unknown["message"]
    unused = error(ask(http, decoding={"preset": "warm", "guide": {"without": QUESTION}}))
    assert unused["param"] == "decoding.guide"
    assert "has no second stream: leave 'guide' out" in unused["message"]
    clash = {"preset": "strong", "context_weight": 1}
    refused = error(ask(http, decoding=clash))
    assert refused["param"] == "decoding.context_weight"
    assert "needs a guide" in refused["message"]
    # The guide is the client's own, not the preset's.
    missing = error(ask(http, decoding={"preset": "faithful", "guide": {"without": "nowhere"}}))
    assert missing["param"] == "decoding.guide.without"
    assert missing["message"].startswith("The text to leave out")
    listed = http.get("/v1/decoding/presets").json()
    assert {"preset", "context_weight", "guide", "trace"} == set(listed["parameters"]["properties"])


PLAINLY = {"method": "cad", "guide": {"between": ["<a>", "</a>"], "if_missing": "plain"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_missing_document_may_be_plain(
    http: TestClient, engine: FakeClient, path: str, stream: bool
) -> None:
    """Never in silence: each choice says so, once."""
    prompt = {"messages": MARKED} if "chat" in path else {"prompt": "A b"}
    for decoding in (PLAINLY, [PLAINLY, {"method": "kl_temperature", "trace": True}]):
        body = {"model": "smol", **prompt, "decoding": decoding, "stream": stream, "n": 2}
        answer = http.post(path, json=body)
        if stream:
            lines = [one[6:] for one in answer.text.splitlines() if one.startswith("data: {")]
            choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        else:
            choices = answer.json()["choices"]
        accounts = [one["decoding"] for one in choices if one.get("decoding")]
        assert len(accounts) == 2
        for account in accounts:
            assert account["applied_steps"] == 0
            assert account["reason"].endswith("There is no text between '<a>' and '</a>'.")
            assert account.get("trace", []) == []
    assert engine.orders == [None] * 2


def test_a_preset_may_weigh_the_document() -> None:
    written = presets.load([], {"mine": {"context_weight": 1, "guide": {"role": "system"}}})
    guide = {"role": "system"}
    assert written["mine"] == [
        {"method": "cad", "alpha": 1, "guide": guide},
        {"method": "kl_temperature", "guide": guide},
    ]
