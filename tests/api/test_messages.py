"""Guided messages: what only /v1/messages has, on a scripted engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from divserve.api.anthropic_documents import as_text
from divserve.errors import InvalidRequest
from tests.support.chat import CAD, DOCUMENT, MESSAGES, QUESTION, guided
from tests.support.fake_client import ANSWER, FakeClient, arguments
from tests.support.routes import events_of

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

PATH = "/v1/messages"
SOURCE = {"type": "text", "media_type": "text/plain", "data": DOCUMENT}
BLOCK = {"type": "document", "source": SOURCE}
TRACED = guided(trace=True)
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"of": "France"}}\n</tool_call>'
TOOL = {"name": "look_up", "input_schema": {"properties": {"of": {"type": "string"}}}}


@pytest.fixture(scope="module")
def app(fake_engine: FakeClient) -> FastAPI:
    from divserve.server import build_app

    args = arguments()
    args.enable_auto_tool_choice, args.tool_call_parser = True, "hermes"
    return asyncio.run(build_app(fake_engine, args))  # type: ignore[arg-type]


def ask(http: TestClient, decoding: Any = CAD, **fields: Any) -> Any:
    body = {"model": "smol", "messages": MESSAGES, "max_tokens": 5, **fields}
    return http.post(PATH, json={**body, **({"decoding": decoding} if decoding else {})})


def content(*blocks: Any) -> list[Any]:
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": QUESTION}]}]


def error_of(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["param"]


def guide_of(engine: FakeClient) -> str:
    text: str = engine.renderer.tokenizer.decode(engine.orders[-1]["guides"][0])
    return text


def test_the_account_is_beside_the_usage(http: TestClient) -> None:
    message = ask(http, TRACED).json()
    assert message["type"] == "message"
    assert message["usage"]["output_tokens"] == message["decoding"]["applied_steps"] == 4
    assert message["content"] == [{"type": "text", "text": ANSWER}]
    assert message.keys() - {"decoding"} == ask(http, None).json().keys()


def test_events(http: TestClient) -> None:
    events = events_of(ask(http, TRACED, stream=True).text)
    names = [name for name, data in events if "decoding" in data]
    assert names == ["content_block_delta"] * 3 + ["message_delta"]
    texts = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    entries = [data["decoding"]["trace"] for _, data in events if "decoding" in data]
    assert ["".join(entry["token"] for entry in some) for some in entries] == texts
    (last,) = (data for name, data in events if name == "message_delta")
    assert last["usage"]["output_tokens"] == last["decoding"]["applied_steps"] == 4
    assert last["delta"]["stop_reason"] == "max_tokens"
    (last,) = (d for n, d in events_of(ask(http, stream=True).text) if n == "message_delta")
    assert "trace" not in last["decoding"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(
    http: TestClient, engine: FakeClient, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = engine.renderer.tokenizer.encode(CALL)
    monkeypatch.setattr(engine, "answer", tokens)
    answer = ask(http, TRACED, tools=[TOOL], stream=stream)
    if stream:
        events = events_of(answer.text)
        entries = [e for _, data in events for e in data.get("decoding", {}).get("trace", ())]
        assert '"of"' in "".join(
            data["delta"].get("partial_json", "") for n, data in events if n.endswith("block_delta")
        )
    else:
        (block,) = answer.json()["content"]
        assert (block["type"], block["input"]) == ("tool_use", {"of": "France"})
        entries = answer.json()["decoding"]["trace"]
    assert [entry["token_id"] for entry in entries] == tokens


def test_the_system_and_tools_are_part_of_the_guide(http: TestClient, engine: FakeClient) -> None:
    blocks = [{"type": "tool_result", "tool_use_id": "t", "content": f"Found: {DOCUMENT}"}]
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look_up"}]},
        {"role": "user", "content": [*blocks, {"type": "text", "text": QUESTION}]},
    ]
    assert ask(http, messages=turns, system=f"Trust it. {DOCUMENT}").status_code == 200
    guide = guide_of(engine)
    assert DOCUMENT.strip() not in guide
    for left in ("Trust it.", "Found:", QUESTION):
        assert left in guide


@pytest.mark.parametrize(
    "messages",
    [
        content(BLOCK),
        content({"type": "document", "source": {"type": "content", "content": DOCUMENT}}),
        content(
            {
                "type": "document",
                "citations": {"enabled": False},
                "source": {"type": "content", "content": [{"type": "text", "text": DOCUMENT}]},
            }
        ),
        [{"role": "user", "content": [BLOCK]}, {"role": "user", "content": QUESTION}],
    ],
    ids=["text", "content", "blocks", "alone"],
)
def test_documents(http: TestClient, engine: FakeClient, messages: Any) -> None:
    message = ask(http, None, model="smol@faithful", messages=messages).json()
    assert message["decoding"]["method"] == "adacad+kl_temperature"
    assert DOCUMENT.strip() not in guide_of(engine)
    assert QUESTION in guide_of(engine)
    assert ask(http, messages=messages).status_code == 200
    assert DOCUMENT.strip() not in guide_of(engine)


def test_documents_of_plain_messages_are_text(http: TestClient) -> None:
    titled = {**BLOCK, "title": "News", "context": "Of today"}
    text = {"type": "text", "text": f"News\nOf today\n{DOCUMENT}"}
    counts = [
        ask(http, None, messages=content(block)).json()["usage"]["input_tokens"]
        for block in (titled, text)
    ]
    body = {"model": "smol", "messages": content(titled)}
    counts.append(http.post(f"{PATH}/count_tokens", json=body).json()["input_tokens"])
    assert counts[0] == counts[1] == counts[2]


def test_what_cannot_be_counted(http: TestClient) -> None:
    wrong = document(source={"type": "url", "url": "https://example.com/a.pdf"})
    for body, found in (
        ({"model": "smol", "messages": wrong}, (400, "messages.0.content.0.source.type")),
        ({"model": "gone", "messages": MESSAGES}, (404, "model")),
        ({"model": "smol", "messages": []}, (400, "messages")),
    ):
        response = http.post(f"{PATH}/count_tokens", json=body)
        assert error_of(response) == found
        assert response.json()["type"] == "error"


RESULT = {"content": [5, {"type": "tool_result", "content": [5, {"type": "text", "text": "a"}]}]}


def document(**fields: Any) -> Any:
    return content({"type": "document", **fields})


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (document(), "source"),
        (document(source="text"), "source"),
        (document(source={"type": "base64", "data": "JVBERi0="}), "source.type"),
        (document(source={"type": "url", "url": "https://example.com/a.pdf"}), "source.type"),
        (document(source={"type": "file", "file_id": "f"}), "source.type"),
        (document(source={"type": "text"}), "source.data"),
        (document(source={"type": "text", "data": " "}), "source.data"),
        (document(source={"type": "text", "data": ["a"]}), "source.data"),
        (document(source={"type": "content", "content": []}), "source.content"),
        (document(source={"type": "content", "content": [{"type": "image"}]}), "source.content"),
        (document(source=SOURCE, citations={"enabled": True}), "citations"),
        (content({"type": "tool_result", "content": ["a", BLOCK]}), "content.1.type"),
    ],
)
@pytest.mark.parametrize("decoding", [None, CAD], ids=["plain", "guided"])
def test_documents_that_are_no_text(
    http: TestClient, messages: Any, param: str, decoding: Any
) -> None:
    response = ask(http, decoding, messages=messages)
    assert error_of(response) == (400, f"messages.0.content.0.{param}")
    assert response.json()["type"] == "error"


@pytest.mark.parametrize("body", [5, {}, {"messages": 5}, {"messages": [5, RESULT]}])
def test_what_has_no_documents_is_left_to_validation(body: Any) -> None:
    assert as_text(body) == body


def test_a_title_that_is_no_text_is_refused() -> None:
    for field in ("title", "context"):
        with pytest.raises(InvalidRequest, match="text") as refused:
            as_text({"messages": [{"content": [{**BLOCK, field: 5}]}]})
        assert refused.value.param == f"messages.0.content.0.{field}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_guide_that_cannot_be_made_is_no_failure(
    http: TestClient, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """vLLM's route logs a traceback for whatever is raised."""
    response = ask(http, guided(guide={"without": "no"}), stream=stream)
    assert error_of(response) == (400, "decoding.guide.without")
    assert not [record for record in caplog.records if record.exc_info]


def test_a_request_of_vllms_own_type(app: FastAPI, engine: FakeClient) -> None:
    """As its batch runner and its own routes make them."""
    from divserve.http.openai import AnthropicMessagesRequest

    serving = app.state.anthropic_serving_messages
    body = {"model": "smol", "messages": MESSAGES, "max_tokens": 5}
    chat = serving.to_chat_completion_request(AnthropicMessagesRequest.model_validate(body))
    assert not hasattr(chat, "decoding")
    assert json.loads(chat.model_dump_json())["messages"] == MESSAGES
