"""Guided batches of chats: what only /v1/chat/completions/batch has, on a scripted engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from divserve.api import routes
from tests.support.chat import CAD, DOCUMENT, MESSAGES, QUESTION, guided
from tests.support.edges import LIMITS
from tests.support.fake_client import ANSWER, FakeClient, arguments

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

PATH = "/v1/chat/completions/batch"
OTHER = "Document: The capital of Spain is Bilbao.\n"
SPAIN = [{"role": "user", "content": [{"type": "text", "text": OTHER + QUESTION}]}]
BOTH = [MESSAGES, SPAIN]
EACH = guided(guide={"without": [DOCUMENT, OTHER]}, trace=True)


def ask(http: TestClient, decoding: Any = EACH, **fields: Any) -> Any:
    body = {"model": "smol", "messages": BOTH, "max_tokens": 5, "decoding": decoding, **fields}
    return http.post(PATH, json=body)


def error_of(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["param"]


@pytest.mark.parametrize("listed", [False, True])
def test_each_conversation_has_its_own_guide(
    http: TestClient, engine: FakeClient, listed: bool
) -> None:
    second = {"method": "kl_temperature", "guide": EACH["guide"]}
    answer = ask(http, [EACH, second] if listed else EACH).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice, order, prompt in zip(answer["choices"], engine.orders, BOTH, strict=True):
        account = choice["decoding"]
        assert choice["message"]["content"] == ANSWER
        assert account["applied_steps"] == len(account["trace"]) == 4
        guide = engine.renderer.tokenizer.decode(order["guides"][0])
        assert account["guide_prompt_tokens"] == len(order["guides"][0])
        assert QUESTION in guide
        assert "The capital of" not in guide
        assert prompt
    sizes = [choice["decoding"]["guide_prompt_tokens"] for choice in answer["choices"]]
    assert sizes[0] == sizes[1]


def test_a_guide_in_full_is_shared(http: TestClient, engine: FakeClient) -> None:
    assert ask(http, guided(guide={"messages": MESSAGES})).status_code == 200
    assert engine.orders[0]["guides"] == engine.orders[1]["guides"]


@pytest.mark.parametrize(
    ("without", "param"),
    [
        (DOCUMENT, "decoding.guide.without"),
        ([DOCUMENT], "decoding.guide.without"),
        ([DOCUMENT, OTHER, "nowhere"], "decoding.guide.without.2"),
    ],
)
def test_texts_that_are_missing(http: TestClient, without: Any, param: str) -> None:
    assert error_of(ask(http, guided(guide={"without": without}))) == (400, param)


def test_a_conversation_without_a_document(http: TestClient, engine: FakeClient) -> None:
    guide = {"without": [DOCUMENT, "nowhere"], "if_missing": "plain"}
    answer = ask(http, guided(guide=guide, trace=True)).json()
    guided_one, plain = (choice["decoding"] for choice in answer["choices"])
    assert (guided_one["applied_steps"], plain["applied_steps"]) == (4, 0)
    assert "does not occur" in plain["reason"]
    assert engine.orders[1] is None


def test_of_one_conversation(http: TestClient) -> None:
    answer = ask(http, CAD, messages=[MESSAGES]).json()
    (choice,) = answer["choices"]
    assert choice["decoding"]["method"] == "cad"


def test_conversations_are_rows(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    weighed: list[int] = []
    monkeypatch.setattr(routes, "weigh", lambda scope, rows: weighed.append(rows))
    ask(http)
    ask(http, None)
    assert weighed == [4, 2]


def test_limits(fake_engine: FakeClient) -> None:
    from divserve.server import build_app

    limits = LIMITS | {"max_rows_per_request": 3}
    app = asyncio.run(build_app(fake_engine, arguments(**limits)))  # type: ignore[arg-type]
    http = TestClient(app)
    response = ask(http)
    assert error_of(response) == (400, "messages")
    assert "--max-rows-per-request" in response.json()["error"]["message"]
    response = ask(http, {"method": "entropy_temperature", "trace": True}, max_tokens=51)
    assert error_of(response) == (400, "decoding.trace")
    assert "102 tokens, over 2 choices" in response.json()["error"]["message"]
    assert error_of(ask(http, None, messages=[MESSAGES] * 3)) == (400, "messages")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages.0"),
        ({"model": "nobody"}, "model"),
        ({"include_reasoning": False}, "decoding.trace"),
        ({"truncate_prompt_tokens": 5}, "decoding"),
        ({"decoding": guided(guide={"prompt": "x"})}, "decoding.guide.prompt"),
    ],
)
def test_refusals(http: TestClient, fields: dict[str, Any], param: str) -> None:
    status = 404 if param == "model" else 400
    assert error_of(ask(http, **fields)) == (status, param)


def test_logprobs_and_seeds_compose(http: TestClient) -> None:
    fields = {"logprobs": True, "seed": 1, "temperature": 0.5, "stop": ["x"]}
    for choice in ask(http, **fields).json()["choices"]:
        assert len(choice["logprobs"]["content"]) == choice["decoding"]["applied_steps"]


def test_an_engine_without_an_answer(
    http: TestClient, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answer", [])
    response = ask(http)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


def test_a_batch_of_vllms_own_type(app: FastAPI, engine: FakeClient) -> None:
    from divserve.http.openai import BatchChatCompletionRequest

    request = BatchChatCompletionRequest.model_validate({"model": "smol", "messages": BOTH})
    serving = app.state.openai_serving_chat_batch
    answer = asyncio.run(serving.create_batch_chat_completion(request))
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 2
    assert engine.orders == [None, None]
