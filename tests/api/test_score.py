"""The route of scores: what it asks the engine for, its answers, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from divserve.decoding import Form
from divserve.errors import ApiError
from divserve.scores import SCORES, Scoring, log_frequencies
from tests.support.chat import DOCUMENT, MESSAGES, PROMPT
from tests.support.fake_client import MAX_GUIDE_TOKENS, FakeClient, arguments

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

PATH = "/v1/decoding/score"
CHAT: dict[str, Any] = {"messages": MESSAGES, "answer": "Lyon"}
TEXT: dict[str, Any] = {"prompt": PROMPT, "answer": "Lyon"}
WITHOUT = {"without": DOCUMENT}


@pytest.fixture(scope="module")
def app(fake_engine: FakeClient) -> FastAPI:
    from divserve.server import build_app

    args = arguments(max_batch_prompts=3, max_rows_per_request=5, max_trace_tokens=40)
    args.scoring = Scoring(True, log_frequencies(np.ones(100, np.int64)))
    return asyncio.run(build_app(fake_engine, args))  # type: ignore[arg-type]


@pytest.fixture
def engine(fake_engine: FakeClient) -> Iterator[FakeClient]:
    """The engine behind the app; it has only the orders of this test."""
    fake_engine.orders.clear()
    fake_engine.fail_at, fake_engine.report, fake_engine.excluded = None, True, 0
    yield fake_engine
    fake_engine.fail_at, fake_engine.report, fake_engine.excluded = None, True, 0


@pytest.fixture
def http(app: FastAPI, engine: FakeClient) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def ask(http: TestClient, **body: Any) -> Any:
    """The answer to a request that is accepted."""
    response = http.post(PATH, json={"model": "smol", **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: TestClient, **body: Any) -> tuple[str | None, str, str]:
    """``param``, code and message of a 400."""
    response = http.post(PATH, json={"model": "smol", **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["code"], error["message"]


def test_a_text(http: TestClient, engine: FakeClient) -> None:
    """All tokens but the first are scored, by the plain model."""
    answer = ask(http, input="The capital is Lyon")
    (order,) = engine.orders
    ids = engine.renderer.tokenizer.encode("The capital is Lyon")
    assert (order["guides"], order["reading"]["tokens"]) == ([], len(ids) - 1)
    assert (order["reading"]["guided"], order["reading"]["reference"]) == (False, False)
    (item,) = answer["data"]
    assert item.keys() == {"object", "index", "tokens", "scores", "larger_means"}
    assert item["scores"].keys() == {*Scoring.defaults(False)}
    assert item["scores"]["loss"] == 0.5
    assert answer["usage"] == {
        "prompt_tokens": len(ids),
        "guide_prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": len(ids),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_several_texts(http: TestClient, engine: FakeClient) -> None:
    """As texts and as token ids; the model need not be named."""
    ids = engine.renderer.tokenizer.encode("One two three")
    for texts in (["One two three", "Four five"], [ids, [5, 6]]):
        response = http.post(PATH, json={"input": texts})
        answer = response.json()
        assert [item["index"] for item in answer["data"]] == [0, 1]
        assert answer["model"] == "smol"
    assert [order["reading"]["tokens"] for order in engine.orders] == [len(ids) - 1, 1] * 2
    (one,) = ask(http, input=ids)["data"]
    assert one["tokens"] == len(ids) - 1


def test_answers_behind_a_chat_share_its_prompt(http: TestClient, engine: FakeClient) -> None:
    answer = ask(http, **(CHAT | {"answer": ["Lyon", "Paris, I think"], "guide": WITHOUT}))
    first, second = engine.orders
    encode = engine.renderer.tokenizer.encode
    texts = [encode("Lyon"), encode("Paris, I think")]
    assert [len(text) for text in texts] == [item["tokens"] for item in answer["data"]]
    one, other = first["guides"][0], second["guides"][0]
    before = one[: -len(texts[0])]
    assert before == other[: -len(texts[1])]
    assert [one[len(before) :], other[len(before) :]] == texts
    assert DOCUMENT.strip() not in engine.renderer.tokenizer.decode(before)
    assert answer["data"][0]["scores"].keys() == {*Scoring.defaults(True)}
    assert answer["usage"]["guide_prompt_tokens"] == sum(len(o["guides"][0]) for o in engine.orders)


@pytest.mark.parametrize("answer", ["Lyon", [5, 6, 7], [[5, 6, 7]]])
def test_an_answer_behind_a_prompt(http: TestClient, engine: FakeClient, answer: Any) -> None:
    ask(http, prompt=PROMPT, answer=answer, guide={"prompt": [9, 10]})
    (order,) = engine.orders
    ids = engine.renderer.tokenizer.encode("Lyon") if answer == "Lyon" else [5, 6, 7]
    assert order["guides"] == [[9, 10, *ids]]


def test_a_method_by_its_name(http: TestClient, engine: FakeClient) -> None:
    """It takes the guide of the body; the whole distribution is its own."""
    ask(http, **CHAT, guide=WITHOUT, method="adacad")
    ask(http, **CHAT, method={"method": "adacad", "guide": WITHOUT})
    ask(http, **CHAT, guide=WITHOUT, method=[{"method": "adacad"}, {"method": "kl_temperature"}])
    first, second, third = engine.orders
    assert first == second
    assert first["reading"]["guided"]
    assert first["program"][1:3] == (0.0, 1.0)
    assert third["guides"] == first["guides"]


def test_a_guide_alone_leaves_the_distribution_as_it_is(
    http: TestClient, engine: FakeClient
) -> None:
    ask(http, **CHAT, guide=WITHOUT)
    (order,) = engine.orders
    assert order["program"][:3] == (float(Form.LINEAR), 0.0, 0.0)
    assert not order["reading"]["guided"]


def test_a_method_without_a_guide(http: TestClient, engine: FakeClient) -> None:
    """Also of whole texts; the natural guide of a method needs no field."""
    ask(http, input="Lyon is a city", method="contrastive")
    ask(http, **TEXT, method="cfg")
    first, second = engine.orders
    assert (first["amateurs"], first["guides"]) == (("amateur",), [])
    assert len(second["guides"][0]) == 1 + second["reading"]["tokens"]


def test_excluded_tokens(http: TestClient, engine: FakeClient) -> None:
    """JSON has no −∞: null, and a count."""
    engine.excluded = 1
    answer = ask(http, input="Lyon is a city", method="contrastive", tokens=True, scores=["loss"])
    (item,) = answer["data"]
    assert (item["excluded"], item["scores"]) == (1, {"loss": None})
    assert item["trace"][0]["logprob"] is None
    assert item["trace"][1]["logprob"] == -0.5
    assert item["trace"][0]["plain_logprob"] == -0.5


def test_the_trace(http: TestClient, engine: FakeClient) -> None:
    answer = ask(http, **TEXT, guide=WITHOUT, tokens=True)
    (item,) = answer["data"]
    entry = item["trace"][0]
    assert "".join(one["token"] for one in item["trace"]) == "Lyon"
    assert entry["rank"] == 2
    assert isinstance(entry["rank"], int)
    assert bytes(entry["bytes"]).decode() == entry["token"]
    assert {"logprob", "entropy", "varentropy", "guide_logprob", "kl", "jsd"} < entry.keys()
    plain = ask(http, input="Lyon", tokens=True)["data"][0]["trace"][0]
    assert not {"guide_logprob", "kl", "jsd", "plain_logprob"} & plain.keys()


def test_characters_of_several_tokens(http: TestClient) -> None:
    """As in log-probs: the last token of a character has all of it."""
    trace = ask(http, prompt="A", answer="東京", tokens=True, top_logprobs=1)["data"][0]["trace"]
    assert "".join(entry["token"] for entry in trace) == "東京"


def test_likeliest_tokens_and_chosen_ids(http: TestClient, engine: FakeClient) -> None:
    ids = [[7], [], [8, 9]]
    answer = ask(http, input=[1, 5, 6, 7], top_logprobs=2, logprob_token_ids=ids)
    trace = answer["data"][0]["trace"]
    assert [entry["logprobs"] for entry in trace] == [[-0.5], [], [-0.5, -0.5]]
    assert [one["token_id"] for one in trace[0]["top_logprobs"]] == [5, 6]
    assert engine.orders[0]["reading"]["ids"] == ids


def test_all_scores(http: TestClient, engine: FakeClient) -> None:
    """A text in lower case is a second read, by the plain model."""
    answer = ask(http, **TEXT, guide=WITHOUT, scores=[*SCORES])
    assert answer["data"][0]["scores"].keys() == SCORES.keys()
    whole, lower = engine.orders
    assert whole["reading"]["reference"]
    assert lower["guides"] == []
    assert lower["reading"]["tokens"] == len(engine.renderer.tokenizer.encode("lyon"))
    lower_input = ask(http, input="Lyon Is Big", scores=["lowercase"])["data"][0]
    assert lower_input["scores"]["lowercase"] == 1.0
    ids = engine.renderer.tokenizer.encode("lyon is big")
    assert engine.orders[-1]["reading"]["tokens"] == len(ids) - 1


def test_the_list(http: TestClient) -> None:
    listed = http.get("/v1/decoding/scores").json()["data"]
    assert [entry["score"] for entry in listed] == [*SCORES]
    assert all(entry["available"] for entry in listed)
    assert all(entry["worth"] for entry in listed)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": "a b", **TEXT}, "prompt"),
        ({"input": "a b", "answer": "c"}, "answer"),
        ({"prompt": "a"}, "answer"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"prompt": "a", "answer": []}, "answer"),
        ({"prompt": "a", "answer": ["b", ""]}, "answer.1"),
        ({"input": "a"}, "input"),
        ({"prompt": [], "answer": "a"}, "prompt"),
        ({"input": [1, 2, 10**8]}, "input"),
        ({"prompt": "a", "answer": [10**8]}, "answer"),
        ({"input": "a b", "scores": ["los"]}, "scores.0"),
        ({"input": "a b", "scores": []}, "scores"),
        ({"input": "a b", "scores": ["kl"]}, "guide"),
        ({"input": "a b", "guide": {"prompt": "a"}}, "guide"),
        ({"input": "a b", "method": "cfg"}, "method"),
        ({"input": "a b", "method": "contrastive", "guide": {"prompt": "a"}}, "guide"),
        ({**TEXT, "method": "adacad"}, "method.guide"),
        ({**TEXT, "method": "nothing"}, "method.method"),
        ({**TEXT, "method": 5}, "method"),
        ({**TEXT, "method": {"alpha": 5}}, "method.method"),
        ({**TEXT, "method": {"method": "cad", "alpha": -1}, "guide": WITHOUT}, "method.alpha"),
        ({**TEXT, "method": "look_back"}, "method"),
        ({**TEXT, "method": {"preset": "faithful"}}, "method"),
        ({**TEXT, "method": {"method": "cad", "trace": True}, "guide": WITHOUT}, "method"),
        ({**TEXT, "guide": {"without": "not there", "if_missing": "plain"}}, "guide"),
        ({**TEXT, "method": {"method": "vdgd", "grounding": "a"}}, "method"),
        ({**TEXT, "method": "dexperts"}, "method.method"),
        ({**TEXT, "guide": {"without": "not there"}}, "guide.without"),
        ({**TEXT, "method": {"method": "cad", "guide": {"without": "x"}}}, "method.guide.without"),
        ({**TEXT, "guide": {"messages": MESSAGES}}, "guide.messages"),
        ({**CHAT, "guide": {"prompt": "a"}}, "guide.prompt"),
        ({"messages": [5], "answer": "a"}, "messages.0"),
        ({"input": [1, 2], "logprob_token_ids": [[1], [2]]}, "logprob_token_ids"),
        ({"input": ["a b", "c d"], "logprob_token_ids": [[1]]}, "logprob_token_ids"),
        ({"input": [1, 2], "scores": ["lowercase"]}, "scores"),
        ({"input": ["a b"] * 4}, "input"),
        ({**TEXT, "answer": ["a b"] * 3, "guide": WITHOUT}, "answer"),
        ({"input": "a b " * 30, "tokens": True}, "tokens"),
        ({"input": "a b " * 200}, "input"),
        ({"prompt": "a", "answer": "a b " * MAX_GUIDE_TOKENS}, "answer"),
        ({"input": "a b", "top_logprobs": 99}, "top_logprobs"),
        ({"input": "a b", "k": 0}, "k"),
        ({"input": "a b", "decoding": {"method": "cfg"}}, "decoding"),
        ({"input": "a b", "unknown": 1}, "unknown"),
    ],
)
def test_refusals_name_the_field(http: TestClient, body: dict[str, Any], param: str) -> None:
    assert refused(http, **body)[0] == param


def test_a_body_that_is_no_object(http: TestClient) -> None:
    assert http.post(PATH, json=[1]).status_code == 400


def test_a_model_that_is_not_there(http: TestClient) -> None:
    response = http.post(PATH, json={"model": "other", "input": "a b"})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


def test_scores_that_are_not_offered(fake_engine: FakeClient) -> None:
    from divserve.server import build_app

    app = asyncio.run(build_app(fake_engine, arguments()))  # type: ignore[arg-type]
    param, code, message = refused(TestClient(app), input="a b", scores=["loss", "dc_pdd"])
    assert (param, code) == ("scores.1", "score_unavailable")
    assert "--scores membership and --frequencies" in message


@pytest.mark.parametrize("field", ["lora_config", "kv_transfer_config"])
def test_engines_that_cannot_score(
    http: TestClient, engine: FakeClient, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setattr(engine.vllm_config, field, object())
    _, code, message = refused(http, input="a b")
    assert code == "method_unavailable"
    assert "scores no texts" in message


def test_without_a_tokenizer(
    http: TestClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.openai_serving_completion.renderer, "tokenizer", None)
    assert refused(http, input=[1, 2])[0] == "input"


def test_an_engine_that_returns_nothing(http: TestClient, engine: FakeClient) -> None:
    engine.report = False
    response = http.post(PATH, json={"input": "a b"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "decoding_failed")


def test_the_first_error_ends_the_others(http: TestClient, engine: FakeClient) -> None:
    engine.fail_at, engine.error = 0, ApiError("broken")
    response = http.post(PATH, json={"input": ["a b", "c d"]})
    assert (response.status_code, response.json()["error"]["message"]) == (500, "broken")


def test_best_of_is_refused(http: TestClient) -> None:
    """vLLM ignores it; as many as n is what it does anyway."""
    body = {"model": "smol", "prompt": "a", "max_tokens": 1, "n": 2}
    for best_of, status in ((None, 200), (2, 200), (3, 400), ("3", 400)):
        response = http.post("/v1/completions", json={**body, "best_of": best_of})
        assert response.status_code == status, best_of
        if status == 400:
            assert response.json()["error"]["param"] == "best_of"


def test_messages_that_are_none(http: TestClient) -> None:
    param, _, message = refused(http, messages=[{"role": "user", "content": 5}], answer="a")
    assert param is not None
    assert param.startswith("messages.0")
    assert message
