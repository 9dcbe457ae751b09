"""The same guided chat on every route of a real server: one answer, wherever it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from divserve.http.paths import CHAT, CHAT_BATCH, MESSAGES, RESPONSES
from tests.support.chat import CAD, DOCUMENT, QUESTION, account, chat, guided
from tests.support.routes import CHATS, STREAMED, Route, events_of
from tests.support.server import API_KEY

TRACED = guided("adacad", trace=True)
LENGTHS = {"max_tokens": 12}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Lyon"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def http(server: str) -> Iterator[httpx2.Client]:
    """A client that sends its key as Anthropic's does."""
    with httpx2.Client(base_url=server, headers={"x-api-key": API_KEY}, timeout=120) as http:
        yield http


@pytest.fixture(scope="module")
def expected(client: openai.OpenAI) -> Any:
    """The choice of the chat route."""
    return chat(client, TRACED).choices[0]


def body_of(route: Route, **fields: Any) -> dict[str, Any]:
    field = "max_output_tokens" if route.path == RESPONSES else "max_tokens"
    return {**route.body, field: 12, "decoding": TRACED, **fields}


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES, CHAT_BATCH])
def test_the_answer_of_a_chat(http: httpx2.Client, expected: Any, path: str) -> None:
    route = CHATS[path]
    answer = http.post(path, json=body_of(route)).raise_for_status().json()
    assert route.text(answer) == expected.message.content
    assert route.account(answer) == account(expected)


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_its_stream(http: httpx2.Client, expected: Any, path: str) -> None:
    route = STREAMED[path]
    response = http.post(path, json=body_of(route, stream=True)).raise_for_status()
    events = events_of(response.text)
    assert route.summary is not None
    (summary,) = (found for event in events if (found := route.summary(*event)))
    carried = [entry for event in events for entry in route.entries(*event)]
    whole = account(expected)
    if path == RESPONSES:
        assert summary == whole
    else:
        assert summary | {"trace": carried} == whole
    assert carried == whole["trace"][: len(carried)]
    assert len(carried) >= len(whole["trace"]) - 1


def test_the_openai_client_reads_a_response(client: openai.OpenAI, expected: Any) -> None:
    response: Any = client.responses.create(
        model="smol",
        instructions=DOCUMENT,
        input=QUESTION,
        temperature=0,
        max_output_tokens=12,
        extra_body={"decoding": TRACED},
    )
    assert response.output_text
    assert response.decoding["applied_steps"] == response.usage.output_tokens
    assert response.output[0].decoding["mean"] == response.decoding["mean"]
    again: Any = client.responses.create(
        model="smol",
        input=[{"role": "user", "content": DOCUMENT}, *response.output,
               {"role": "user", "content": QUESTION}],
        max_output_tokens=4,
        extra_body={"decoding": CAD},
    )  # fmt: skip
    assert again.decoding["applied_steps"] == 4


def test_the_openai_client_streams_a_response(client: openai.OpenAI) -> None:
    """Its helper `responses.stream` makes events of its own; the last one keeps the account."""
    asked: dict[str, Any] = {
        "model": "smol",
        "input": DOCUMENT + QUESTION,
        "temperature": 0,
        "max_output_tokens": 12,
        "extra_body": {"decoding": TRACED},
    }
    events = list(client.responses.create(stream=True, **asked))
    texts: Any = [event for event in events if event.type == "response.output_text.delta"]
    final: Any = events[-1]
    trace = [entry for event in texts for entry in event.decoding["trace"]]
    assert "".join(event.delta for event in texts) == final.response.output_text
    assert trace == final.response.decoding["trace"][: len(trace)]
    with client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        helped: Any = stream.get_final_response()
    assert helped.decoding == final.response.decoding
    assert helped.decoding["applied_steps"] == helped.usage.output_tokens


def test_a_schema_and_logprobs_of_a_response(client: openai.OpenAI) -> None:
    shape: Any = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}
    response: Any = client.responses.create(
        model="smol",
        input=DOCUMENT + QUESTION,
        temperature=0,
        max_output_tokens=30,
        include=["message.output_text.logprobs"],
        text=shape,
        extra_body={"decoding": CAD},
    )
    (part,) = response.output[0].content
    assert '"Lyon"' in part.text
    assert len(part.logprobs) == response.decoding["applied_steps"]


def test_a_batch_has_the_answers_of_its_conversations(http: httpx2.Client) -> None:
    """Every conversation of its own, with its own guide."""
    turns = [
        [{"role": "user", "content": f"Document: The capital of {land} is {city}.\n{QUESTION}"}]
        for land, city in (("France", "Lyon"), ("Spain", "Bilbao"))
    ]
    texts = [f"The capital of {land}" for land in ("France is Lyon.", "Spain is Bilbao.")]
    decoding = guided(guide={"without": texts})
    fields = {"model": "smol", "temperature": 0, **LENGTHS}
    batch = http.post(CHAT_BATCH, json={**fields, "messages": turns, "decoding": decoding}).json()
    for conversation, text, choice in zip(turns, texts, batch["choices"], strict=True):
        one = {**fields, "messages": conversation, "decoding": guided(guide={"without": text})}
        (single,) = http.post(CHAT, json=one).json()["choices"]
        assert choice["message"]["content"] == single["message"]["content"]
        assert choice["decoding"] == single["decoding"]


def test_an_alias_and_a_document(http: httpx2.Client) -> None:
    source = {"type": "text", "media_type": "text/plain", "data": DOCUMENT}
    blocks = [{"type": "document", "source": source}, {"type": "text", "text": QUESTION}]
    body = {"model": "smol@faithful", "max_tokens": 4,
            "messages": [{"role": "user", "content": blocks}]}  # fmt: skip
    message = http.post(MESSAGES, json=body).raise_for_status().json()
    assert message["model"] == "smol@faithful"
    assert message["decoding"]["method"] == "adacad+kl_temperature"
