"""Guided requests in vLLM's serving classes: what these reject, and explicit guides."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from divserve.http.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    ErrorInfo,
    ErrorResponse,
)
from tests.support.chat import DOCUMENT, MESSAGES, PROMPT, QUESTION
from tests.support.fake_client import ANSWER, FakeClient

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TWO_TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ONE_TURN_ONLY = (
    "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    "{{ messages[0]['content'] }}"
)


def ask(http: TestClient, path: str, guide: dict[str, Any] | None = None, **fields: Any) -> Any:
    """The response to a request with this guide, or with CFG's default."""
    decoding = {"method": "cad", "guide": guide} if guide else {"method": "cfg"}
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": PROMPT}
    body = {"model": "smol", "max_tokens": 4, "decoding": decoding, **prompt, **fields}
    return http.post(path, json=body)


def error_of(response: Any) -> tuple[int, str | None, str]:
    """Status, param and code."""
    error = response.json()["error"]
    return response.status_code, error["param"], error["code"]


def test_a_guide_of_token_ids_is_that_of_every_prompt(http: TestClient, engine: FakeClient) -> None:
    assert ask(http, TEXT, {"prompt": [5, 6, 7]}, prompt=["One", "Two"]).status_code == 200
    assert [order["guides"] for order in engine.orders] == [[[5, 6, 7]]] * 2


def test_a_content_that_can_be_read_but_once(http: TestClient, engine: FakeClient) -> None:
    """Validation turns such a message's content into an iterator; two prompts are made from it."""
    part = {"type": "text", "text": DOCUMENT + QUESTION}
    messages = [{"role": "assistant", "content": [part], "audio": {"id": "1"}}]
    assert ask(http, CHAT, {"without": DOCUMENT}, messages=messages).status_code == 200
    ((guide,),) = (order["guides"] for order in engine.orders)
    text = engine.renderer.tokenizer.decode(guide)
    assert QUESTION in text
    assert DOCUMENT.strip() not in text


@pytest.mark.parametrize(
    ("token_ids", "param", "code"),
    [
        ([5, 10**6], "decoding.guide.prompt", "invalid_value"),
        ([5, -1], "decoding.guide.prompt", "invalid_value"),
        ([5] * 256, "decoding.guide", "context_length_exceeded"),
    ],
)
def test_token_ids_that_are_no_guide(
    http: TestClient, token_ids: list[int], param: str, code: str
) -> None:
    assert error_of(ask(http, TEXT, {"prompt": token_ids})) == (400, param, code)
    assert ask(http, TEXT, {"prompt": [5] * 255}).status_code == 200


@pytest.mark.parametrize(
    ("text", "size"), [("word " * 300, "at least 257 tokens"), ("a" * 10**5, "characters")]
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_guide_that_is_too_long(http: TestClient, path: str, text: str, size: str) -> None:
    """vLLM counts its tokens, or rejects it by its number of characters."""
    message = {"role": "user", "content": text}
    response = ask(http, path, {"messages": [message]} if path == CHAT else {"prompt": text})
    assert error_of(response) == (400, "decoding.guide", "context_length_exceeded")
    assert size in response.json()["error"]["message"]
    assert "at most 255 tokens fit" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_vllm_refuses_of_the_request_itself(http: TestClient, path: str) -> None:
    assert error_of(ask(http, path, model="nobody")) == (404, "model", "model_not_found")


def test_tools_that_need_a_parser(http: TestClient) -> None:
    """The rendering of the request's own prompt rejects them."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    response = ask(http, CHAT, tools=tools, tool_choice="required")
    assert error_of(response) == (400, "tool_choice", "invalid_value")
    assert "--tool-call-parser" in response.json()["error"]["message"]


def test_a_guide_that_the_template_refuses(
    http: TestClient, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many templates have rules for roles, which the request's own messages may satisfy."""
    monkeypatch.setattr(engine.renderer.tokenizer, "chat_template", ONE_TURN_ONLY)
    assert ask(http, CHAT, {"messages": TWO_TURNS[:1]}).status_code == 200
    response = ask(http, CHAT, {"messages": TWO_TURNS})
    assert error_of(response) == (400, "decoding.guide", "invalid_value")
    assert "one turn only" in response.json()["error"]["message"]


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, AttributeError, AssertionError])
def test_a_guide_that_the_renderer_stumbles_over(
    app: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """vLLM's renderers raise different errors: Mistral's raises ValueErrors for odd turns."""
    renderer = app.state.openai_serving_chat.online_renderer
    render = renderer.render_chat

    async def strict(request: Any) -> Any:
        if len(request.messages) > 1:
            raise error("one turn only")
        return await render(request)

    monkeypatch.setattr(renderer, "render_chat", strict)
    response = ask(http, CHAT, {"messages": TWO_TURNS})
    assert error_of(response) == (400, "decoding.guide", "invalid_value")
    assert "one turn only" in response.json()["error"]["message"]


def test_a_guide_for_which_the_renderer_returns_an_error(
    app: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = app.state.openai_serving_chat.online_renderer
    render = renderer.render_chat

    async def strict(request: Any) -> Any:
        told = ErrorInfo(message="one turn only", type="BadRequestError", code=400)
        return ErrorResponse(error=told) if len(request.messages) > 1 else await render(request)

    monkeypatch.setattr(renderer, "render_chat", strict)
    response = ask(http, CHAT, {"messages": TWO_TURNS})
    assert error_of(response) == (400, "decoding.guide", "invalid_value")
    assert response.json()["error"]["message"] == "one turn only"


def test_an_engine_without_an_answer(
    http: TestClient, engine: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answer", [])
    assert error_of(ask(http, CHAT)) == (500, None, "internal_error")


def test_a_grounding_text_without_a_tokenizer(
    app: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``--skip-tokenizer-init``, prompts are token ids; a grounding text is not."""
    monkeypatch.setattr(app.state.openai_serving_completion, "renderer", Tokenless())
    decoding = {"method": "vdgd", "grounding": DOCUMENT}
    response = ask(http, TEXT, decoding=decoding, prompt=[5, 6])
    assert error_of(response) == (400, "decoding.grounding", "invalid_value")
    assert "tokenizer" in response.json()["error"]["message"]


class Tokenless:
    """The part of vLLM's renderer that is used without a tokenizer."""

    tokenizer = None


def test_requests_of_vllms_own_types(app: FastAPI, engine: FakeClient) -> None:
    """As vLLM's batch runner makes them: no method, no record of an HTTP request."""

    async def answers() -> tuple[Any, Any]:
        chat = ChatCompletionRequest(model="smol", messages=MESSAGES, max_tokens=4)
        text = CompletionRequest(model="smol", prompt=PROMPT, max_tokens=4)
        state = app.state
        return (
            await state.openai_serving_chat.create_chat_completion(chat),
            await state.openai_serving_completion.create_completion(text),
        )

    chat, text = asyncio.run(answers())
    assert chat.choices[0].message.content == text.choices[0].text == ANSWER
    assert (chat.model, text.model) == ("smol", "smol")
    assert "decoding" not in chat.choices[0].model_dump() | text.choices[0].model_dump()
    assert engine.orders == [None, None]
