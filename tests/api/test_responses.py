"""Guided responses: what only /v1/responses has, on a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.chat import CAD, DOCUMENT, QUESTION, guided
from tests.support.fake_client import ANSWER, FakeClient, arguments
from tests.support.routes import events_of

PATH = "/v1/responses"
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"of": "France"}}\n</tool_call>'
TOOL = {
    "type": "function", "name": "look_up", "strict": False,
    "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
}  # fmt: skip
TRACED = guided(trace=True)


@pytest.fixture(scope="module")
def app(fake_engine: FakeClient) -> FastAPI:
    from divserve.server import build_app

    args = arguments()
    args.enable_auto_tool_choice, args.tool_call_parser = True, "hermes"
    return asyncio.run(build_app(fake_engine, args))  # type: ignore[arg-type]


@pytest.fixture
def serving(app: FastAPI) -> Any:
    return app.state.openai_serving_responses


@pytest.fixture
def http(app: FastAPI, engine: FakeClient) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def calling(engine: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's answer is a text and a call of the tool."""
    tokens = engine.renderer.tokenizer.encode(f"I look.\n{CALL}")
    monkeypatch.setattr(engine, "answer", tokens)


@pytest.fixture
def storing(serving: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with VLLM_ENABLE_RESPONSES_API_STORE."""
    monkeypatch.setattr(serving, "enable_store", True)
    yield
    serving.response_store.clear()
    serving.msg_store.clear()


def ask(http: TestClient, decoding: Any = CAD, **fields: Any) -> Any:
    body = {"model": "smol", "input": DOCUMENT + QUESTION, **fields}
    return http.post(PATH, json={**body, **({"decoding": decoding} if decoding else {})})


def error_of(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["param"]


def guide_of(engine: FakeClient) -> str:
    """The text of the last request's guide."""
    text: str = engine.renderer.tokenizer.decode(engine.orders[-1]["guides"][0])
    return text


def test_message_items_have_the_account_without_its_trace(http: TestClient) -> None:
    response = ask(http, TRACED).json()
    (item,) = response["output"]
    assert len(response["decoding"].pop("trace")) == 4
    assert item["decoding"] == response["decoding"]


@pytest.mark.usefixtures("calling")
def test_one_account_for_all_items(http: TestClient, engine: FakeClient) -> None:
    response = ask(http, TRACED, tools=[TOOL]).json()
    message, call = response["output"]
    assert (message["type"], call["type"]) == ("message", "function_call")
    assert call["arguments"] == '{"of": "France"}'
    assert "decoding" not in call
    assert message["decoding"]["applied_steps"] == len(engine.answer)
    assert len(response["decoding"]["trace"]) == len(engine.answer)
    assert response["usage"]["output_tokens"] == len(engine.answer)


@pytest.mark.usefixtures("calling")
def test_events_of_a_call_carry_its_tokens(http: TestClient, engine: FakeClient) -> None:
    events = events_of(ask(http, TRACED, tools=[TOOL], stream=True).text)
    carrying = [name for name, data in events if "decoding" in data]
    assert {"response.output_text.delta", "response.function_call_arguments.delta"} <= {*carrying}
    assert all(name.endswith(".delta") for name in carrying)
    carried = [entry for _, data in events for entry in data.get("decoding", {}).get("trace", ())]
    whole = events[-1][1]["response"]["decoding"]["trace"]
    assert len(whole) == len(engine.answer)
    assert carried == whole[: len(carried)]


def test_instructions_and_items_of_the_input(http: TestClient, engine: FakeClient) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": DOCUMENT}]},
        {
            "type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": f"I have read: {DOCUMENT}"}],
        },
        {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": f"Found: {DOCUMENT}"},
        {"role": "user", "content": QUESTION},
    ]  # fmt: skip
    asked = ask(http, input=items, instructions=f"Trust it. {DOCUMENT}", tools=[TOOL])
    assert asked.status_code == 200
    guide = guide_of(engine)
    assert DOCUMENT.strip() not in guide
    for left in ("Trust it.", "I have read:", "Found:", QUESTION):
        assert left in guide


def test_marked_documents(http: TestClient, engine: FakeClient) -> None:
    parts = [
        {"type": "input_text", "text": DOCUMENT, "name": "document"},
        {"type": "input_text", "text": QUESTION},
    ]
    asked = ask(http, None, model="smol@faithful", input=[{"role": "user", "content": parts}])
    assert asked.status_code == 200
    assert QUESTION in guide_of(engine)
    assert DOCUMENT.strip() not in guide_of(engine)


def test_a_message_goes_back_with_its_account(http: TestClient, engine: FakeClient) -> None:
    """As the openai client's users do: the output is part of the next input."""
    first = ask(http, TRACED).json()
    items = [{"role": "user", "content": DOCUMENT}, *first["output"]]
    items.append({"role": "user", "content": QUESTION})
    assert ask(http, input=items).status_code == 200
    assert ANSWER.strip() in guide_of(engine)


@pytest.mark.usefixtures("storing")
@pytest.mark.parametrize("stream", [False, True])
def test_a_stored_response_is_continued(http: TestClient, engine: FakeClient, stream: bool) -> None:
    first = ask(http, TRACED, stream=stream)
    response = events_of(first.text)[-1][1]["response"] if stream else first.json()
    assert http.get(f"{PATH}/{response['id']}").json() == response
    second = ask(http, input="Sure?", previous_response_id=response["id"])
    assert second.json()["decoding"]["applied_steps"] == 4
    guide = guide_of(engine)
    assert DOCUMENT.strip() not in guide
    assert QUESTION in guide
    assert ANSWER.strip() in guide
    plain = ask(http, None, input="Sure?", previous_response_id=response["id"])
    assert plain.status_code == 200
    assert "decoding" not in plain.json()


def test_a_response_that_is_not_stored(http: TestClient) -> None:
    """vLLM ignores `store` unless it is told to store."""
    first = ask(http, store=True).json()
    response = ask(http, input="Sure?", previous_response_id=first["id"])
    assert error_of(response) == (404, "previous_response_id")
    assert first["id"] in response.json()["error"]["message"]


@pytest.mark.usefixtures("storing")
def test_a_stored_response_with_a_picture(
    http: TestClient, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages are known only once they have been rendered."""
    from divserve.http.openai import OpenAIServingResponses

    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    rendered = SimpleNamespace(messages=[{"role": "user", "content": [picture]}])

    async def render(*args: Any, **kwargs: Any) -> Any:
        return rendered

    monkeypatch.setattr(OpenAIServingResponses, "_render_resolved_response_inputs", render)
    assert error_of(ask(http)) == (400, "previous_response_id")


def test_pictures_in_the_output_of_a_tool(http: TestClient) -> None:
    picture = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
    items = [{"type": "function_call_output", "call_id": "c", "output": [picture]}]
    assert error_of(ask(http, input=items)) == (400, "input")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"truncation": None}, "truncation"),
        ({"background": True}, "background"),
        ({"kv_transfer_params": {"a": 1}}, "decoding"),
        ({"use_beam_search": True}, "decoding"),
        ({"decoding": TRACED, "include_reasoning": False}, "decoding.trace"),
        ({"input": "word " * 400}, "input_tokens"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"model": "nobody"}, "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(http: TestClient, fields: dict[str, Any], param: str, stream: bool) -> None:
    status = 404 if param == "model" else 400
    assert error_of(ask(http, stream=stream, **fields)) == (status, param)


def test_a_prompt_that_leaves_no_room_for_a_guide(http: TestClient, engine: FakeClient) -> None:
    """The model takes 256 tokens, a guided prompt 255 at most."""
    size = 0
    for words in range(200, 256):
        response = ask(http, {"method": "cfg"}, input="word " * words, max_output_tokens=1)
        if response.status_code == 400:
            size = words
            break
    assert size
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"


def test_a_guide_that_is_too_long(http: TestClient) -> None:
    guide = {"messages": [{"role": "user", "content": "word " * 300}]}
    response = ask(http, guided(guide=guide))
    assert error_of(response) == (400, "decoding.guide")
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_logprobs_schemas_and_raw_messages(http: TestClient) -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
    response = ask(
        http,
        TRACED,
        include=["message.output_text.logprobs"],
        text={"format": schema},
        enable_response_messages=True,
    ).json()
    (part,) = response["output"][0]["content"]
    assert len(part["logprobs"]) == response["decoding"]["applied_steps"] == 4
    assert (
        DOCUMENT.strip() in response["input_messages"][0]["message"]
        or response["input_messages"][0]["tokens"]
    )


def test_models_of_harmony(http: TestClient, serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "use_harmony", True)
    response = ask(http)
    assert error_of(response) == (400, "decoding")
    assert "/v1/chat/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, AssertionError])
def test_items_that_cannot_be_read(
    app: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    refusal = [{"type": "refusal", "refusal": "no"}]
    item = {"type": "message", "role": "assistant", "content": refusal}
    assert error_of(ask(http, None, input=[item])) == (400, "input")
    assert error_of(ask(http, {"method": "cfg"}, input=[item])) == (400, "input")


def test_items_that_can_be_read_but_once(http: TestClient) -> None:
    """Validation turns lists of some items into iterators, which cannot be copied."""
    item = {
        "type": "code_interpreter_call", "id": "a", "container_id": "c", "code": "x",
        "status": "completed", "outputs": [{"type": "logs", "logs": "a"}],
    }  # fmt: skip
    for decoding in (None, CAD):
        response = ask(http, decoding, input=[item])
        assert error_of(response) == (400, "input")
        assert "Unsupported input item type" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_without_an_answer(
    http: TestClient, engine: FakeClient, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answer", [])
    response = ask(http, stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


def test_a_guided_stream_that_fails_later(http: TestClient, engine: FakeClient) -> None:
    from divserve.engine.client.gone import ShuttingDown

    engine.fail_at, engine.error = 2, ShuttingDown()
    try:
        events = events_of(ask(http, stream=True).text)
    finally:
        engine.fail_at = None
    name, error = events[-1]
    assert (name, error["code"]) == ("error", "shutting_down")
    assert error["sequence_number"] == len(events) - 1


def test_requests_of_vllms_own_type(serving: Any, engine: FakeClient) -> None:
    """As vLLM's batch runner makes them: no method, no record of an HTTP request."""
    from divserve.http.openai import ResponsesRequest

    request = ResponsesRequest(model="smol", input="Hi")
    response = asyncio.run(serving.create_responses(request))
    assert response.output[0].content[0].text == ANSWER
    assert engine.orders == [None]


def test_a_response_that_vllm_refuses_late(
    http: TestClient, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from divserve.http.openai import ErrorInfo, ErrorResponse, OpenAIServingResponses

    async def refuse(*args: Any, **kwargs: Any) -> Any:
        return ErrorResponse(error=ErrorInfo(message="no", type="BadRequestError", code=400))

    monkeypatch.setattr(OpenAIServingResponses, "responses_full_generator", refuse)
    assert ask(http).json()["error"]["message"] == "no"
