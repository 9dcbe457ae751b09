"""Accounts of whole answers and of streams, on every route, against the real application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from divserve.client import Collector, accounts, acollect, collect, decoding
from tests.support.fake_client import ANSWER, FIGURES, FakeClient, arguments
from tests.support.routes import events_of

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

ASK = [{"role": "user", "content": "The capital of France is Lyon. What is it?"}]
PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASK},
    "/v1/completions": {"prompt": "The capital of France is"},
    "/v1/responses": {"input": ASK, "store": False},
    "/v1/messages": {"messages": ASK, "max_tokens": 4},
}


@pytest.fixture(scope="module")
def http() -> TestClient:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.server import build_app

    engine = FakeClient(AsyncEngineArgs.from_cli_args(arguments()).create_engine_config())
    return TestClient(asyncio.run(build_app(engine, arguments())))  # type: ignore[arg-type]


def ask(http: TestClient, path: str, **fields: Any) -> Any:
    response = http.post(path, json={"model": "smol", **PROMPTS[path], **fields})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("trace", [True, "final"])
def test_a_stream_adds_up_to_the_whole(http: TestClient, path: str, trace: Any) -> None:
    extra = decoding("cfg", scale=2, trace=trace)
    whole = ask(http, path, **extra).json()
    (account,) = accounts(whole)
    assert account is not None
    assert (account.method, account.applied_steps, len(account.trace)) == ("cfg", 4, 4)
    assert account.trace[0].figure("kl") == account.mean["kl"] == FIGURES["kl"]
    assert account.trace[0].figure("none") is None

    events = [data for _, data in events_of(ask(http, path, stream=True, **extra).text)]
    found = collect(events)
    assert found.texts == [ANSWER]
    assert found.accounts == [account]
    assert found.finish_reasons[0] in ("stop", "length", "max_tokens", "incomplete", "completed")

    async def chunks() -> AsyncIterator[Any]:
        for event in events:
            yield event

    assert asyncio.run(acollect(chunks())) == found


@pytest.mark.parametrize("path", PROMPTS)
def test_plain_answers_have_none(http: TestClient, path: str) -> None:
    assert accounts(ask(http, path).json()) == [None]
    events = [data for _, data in events_of(ask(http, path, stream=True).text)]
    found = collect(events)
    assert (found.texts, found.accounts) == ([ANSWER], [None])


def test_objects_of_a_client(http: TestClient) -> None:
    """And several choices, whose chunks come in any order."""
    path, extra = "/v1/chat/completions", decoding("cfg", scale=2, trace=True)
    whole = ChatCompletion.model_validate(ask(http, path, n=2, **extra).json())
    told = accounts(whole)
    assert len(told) == 2
    text = ask(http, path, n=2, stream=True, stream_options={"include_usage": True}, **extra).text
    chunks = [ChatCompletionChunk.model_validate(data) for _, data in events_of(text)]
    found = collect(chunks)
    assert found.accounts == told
    assert found.usage is not None
    assert found.usage["completion_tokens"] == 8


def test_a_stream_that_was_cut_off(http: TestClient) -> None:
    """It has the text so far, and no account, for that comes last."""
    extra = decoding("cfg", trace=True)
    text = ask(http, "/v1/chat/completions", stream=True, **extra).text
    collector = Collector()
    for _, data in events_of(text)[:3]:
        collector.add(json.loads(json.dumps(data)))
    found = collector.result()
    assert ANSWER.startswith(found.texts[0])
    assert (found.accounts, found.finish_reasons) == ([None], [None])
    assert collect([]).texts == []


def test_events_of_the_stream_helper_of_openai(http: TestClient) -> None:
    """Those of type ``chunk`` have what came; others tell the same again."""
    text = ask(http, "/v1/chat/completions", stream=True, **decoding("cfg", trace=True)).text
    events: list[Any] = []
    for _, data in events_of(text):
        chunk = ChatCompletionChunk.model_validate(data)
        events.append(SimpleNamespace(type="chunk", chunk=chunk))
        events.append({"type": "content.delta", "delta": "x", "snapshot": "x"})
    found = collect(events)
    assert found.texts == [ANSWER]
    assert found.accounts[0] is not None
    assert len(found.accounts[0].trace) == 4


def test_something_else() -> None:
    with pytest.raises(TypeError, match="str is no answer"):
        accounts("text")
