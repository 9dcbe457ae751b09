"""``echo`` with ``logprobs`` beside a method: what is scored of a prompt, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from divserve.api.echo import log_probs_of, reading_of, shared_end
from divserve.api.texts import Token
from divserve.decoding import FIGURES, Read
from divserve.errors import DecodingFailed, InvalidRequest
from tests.support.chat import CAD, DOCUMENT, MESSAGES, PROMPT
from tests.support.fake_client import FakeClient

PATH = "/v1/completions"
ECHO: dict[str, Any] = {"model": "smol", "prompt": PROMPT, "echo": True, "logprobs": 2}
SHORT: dict[str, Any] = {"max_tokens": 1, "temperature": 0}


def ask(http: TestClient, **body: Any) -> Any:
    """The answer to a request that is accepted."""
    response = http.post(PATH, json={**ECHO, **SHORT, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_end_that_prompt_and_guide_share(http: TestClient, engine: FakeClient) -> None:
    """The numbers of the method; none where the streams stand before different tokens."""
    answer = ask(http, decoding=CAD)
    (choice,), (order,) = answer["choices"], engine.orders
    ids = engine.renderer.tokenizer.encode(PROMPT)
    scored = len(order["guides"][0]) - 1
    assert order["reading"] == {
        "tokens": scored, "top": 2, "ids": [], "guided": True, "reference": False,
    }  # fmt: skip
    before = len(ids) - scored
    found = choice["logprobs"]
    assert found["token_logprobs"][: len(ids)] == [None] * before + [-0.5] * scored
    assert found["top_logprobs"][before - 1] is None
    assert len(found["top_logprobs"][before]) == 3
    assert "".join(found["tokens"][: len(ids)]) == PROMPT
    assert choice["text"].startswith(PROMPT)
    assert choice["decoding"]["applied_steps"] == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    "fields", [{}, {"n": 2, "temperature": 1}, {"prompt": [PROMPT, f"{DOCUMENT}So it is"]}]
)
def test_streams_have_the_same(
    http: TestClient, engine: FakeClient, fields: dict[str, Any]
) -> None:
    """The first chunk of each choice carries them."""
    body = {**ECHO, **SHORT, "decoding": CAD, "n": 1, **fields}
    whole = [choice["logprobs"] for choice in http.post(PATH, json=body).json()["choices"]]
    lines = http.post(PATH, json={**body, "stream": True}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    streamed: dict[int, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if (found := choice["logprobs"]) is not None:
                streamed.setdefault(choice["index"], []).extend(found["token_logprobs"])
    assert [streamed[index] for index in sorted(streamed)] == [w["token_logprobs"] for w in whole]
    assert len(streamed) == (2 if fields else 1)


def test_a_method_without_a_guide(http: TestClient, engine: FakeClient) -> None:
    """All tokens but the first, also of prompts of token ids; a single one has nothing."""
    method = {"method": "entropy_temperature"}
    answer = ask(http, prompt=[[5, 6, 7], [5]], decoding=method, logprobs=0)
    several, single = engine.orders
    assert (several["reading"]["tokens"], several["reading"]["top"]) == (2, 0)
    assert single["reading"] is None
    found = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
    assert (found[0][:3], found[1][:1]) == ([None, -0.5, -0.5], [None])


def test_nothing_is_generated_but_hidden(http: TestClient, engine: FakeClient) -> None:
    answer = ask(http, decoding=CAD, max_tokens=0)
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["tokens"]) == len(engine.renderer.tokenizer.encode(PROMPT))
    assert choice["decoding"]["applied_steps"] == answer["usage"]["completion_tokens"]


def test_a_request_that_is_decoded_plainly(http: TestClient, engine: FakeClient) -> None:
    """Its numbers are vLLM's, and its account says so."""
    guide = {"without": "not there", "if_missing": "plain"}
    (choice,) = ask(http, decoding={"method": "cad", "guide": guide})["choices"]
    assert engine.orders == [None]
    assert choice["logprobs"]["token_logprobs"][:2] == [None, -1.0]
    assert choice["decoding"]["applied_steps"] == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [5, 6], "decoding": {"method": "cad", "guide": {"prompt": [5, 7]}}}, "guide"),
        ({"decoding": {"method": "cfg"}}, "guide"),
        ({"decoding": {"method": "vdgd", "grounding": "a"}}, "echo"),
        ({"decoding": {"method": "look_back"}}, "echo"),
        ({"decoding": CAD, "logprobs": -1}, "logprobs"),
        ({"decoding": CAD, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"decoding": CAD, "max_tokens": 0, "logprobs": None}, "max_tokens"),
    ],
)
def test_refusals_name_the_field(http: TestClient, fields: dict[str, Any], param: str) -> None:
    response = http.post(PATH, json={**ECHO, **SHORT, **fields})
    assert response.status_code == 400, response.text
    found = response.json()["error"]["param"]
    assert found == (f"decoding.{param}" if param == "guide" else param)


def test_a_chat_has_no_log_probs_of_its_prompt(http: TestClient) -> None:
    body = {"model": "smol", "messages": MESSAGES, "decoding": CAD, "echo": True, "logprobs": True}
    response = http.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "echo")
    assert "/v1/decoding/score" in response.json()["error"]["message"]


def test_engines_that_cannot_score(
    http: TestClient, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.vllm_config, "lora_config", object())
    response = http.post(PATH, json={**ECHO, **SHORT, "decoding": CAD})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "method_unavailable")


@pytest.mark.parametrize(
    ("prompt", "guides", "tokens"),
    [
        ([1, 2, 3], [], 2),
        ([1, 2, 3], [[9, 2, 3]], 2),
        ([1, 2, 3], [[2, 3]], 1),
        ([1, 2, 3], [[9, 1, 2, 3]], 2),
        ([1, 2, 3], [[9, 2, 3], [9, 8, 3]], 1),
        ([1, 2, 3], [[3]], 0),
        ([1, 2, 3], [[1, 2, 4]], 0),
    ],
)
def test_shared_ends(prompt: list[int], guides: list[list[int]], tokens: int) -> None:
    """The first token of prompt and guide has nothing before it, so it is never scored."""
    assert shared_end(prompt, guides) == tokens
    if tokens:
        reading = reading_of(prompt, guides, 3, "x")
        assert reading is not None
        assert (reading.tokens, reading.top, reading.guided) == (tokens, 3, True)
    else:
        with pytest.raises(InvalidRequest) as refusal:
            reading_of(prompt, guides, 3, "x")
        assert refusal.value.param == "x"


def decode(ids: Any, before: Any) -> list[Token]:
    return [Token(f"{before[0]}>{number}", None) for number in ids]


def test_the_own_number_of_a_token_comes_first_and_once() -> None:
    """Also if it is the likeliest: clients compare the two numbers."""
    figures = np.zeros((1, len(FIGURES)), np.float32)
    figures[:, FIGURES.index("logprob")], figures[:, FIGURES.index("rank")] = -0.25, 1
    tops = np.array([[7, 8]], np.int32), np.array([[-0.26, -2.0]], np.float32)
    read = Read(figures.tobytes(), tops[0].tobytes(), tops[1].tobytes())
    nothing, found = log_probs_of([5, 7], read, 2, decode)
    assert nothing is None
    assert found is not None
    assert [*found] == [7, 8]
    assert (found[7].logprob, found[7].rank, found[7].decoded_token) == (-0.25, 1, "[5]>7")
    assert (found[8].logprob, found[8].rank) == (-2.0, 2)


def test_an_engine_that_returns_nothing() -> None:
    with pytest.raises(DecodingFailed):
        log_probs_of([5, 7], None, 2, decode)
