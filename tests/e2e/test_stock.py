"""Plain requests are answered as by stock vLLM, on every route that also takes ``decoding``.

Long: it starts ``vllm serve`` and ``divserve serve`` one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from divserve.http.paths import CHAT, CHAT_BATCH, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES
from tests.support.chat import MESSAGES as TURNS
from tests.support.models import make_tiny
from tests.support.routes import events_of
from tests.support.server import API_KEY, TOGETHER, serving

pytestmark = pytest.mark.long

MODULES = {"vLLM": "tests.support.stock_server", "divserve": "divserve"}
FLAGS = ("--dtype", "float32", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
OF_ONE = {"id", "created", "created_at", "item_id", "call_id", "signature", "sequence_number"}
"""Fields that no two answers have in common."""

SEEDED = {"temperature": 0.8, "seed": 7}
GREEDY = {"temperature": 0}
SHORT = {"max_tokens": 8}
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    *TURNS,
    {"role": "assistant", "content": "Lyon."},
    {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
]
TOOL = {"name": "look_up", "parameters": {"type": "object", "properties": {}}}
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "What is the capital?"}]},
    {
        "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
        "content": [{"type": "output_text", "text": "Lyon.", "annotations": []}],
    },
    {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "Paris"},
    {"role": "user", "content": "Are you sure?"},
]  # fmt: skip
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "What is the capital?"}]},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "t1", "name": "look_up", "input": {}}],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Lyon"}]},
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": DIALOGUE, **GREEDY, **SHORT}),
    (CHAT, {"messages": TURNS, "n": 2, "logprobs": True, "top_logprobs": 2, **SEEDED, **SHORT}),
    (
        CHAT,
        {"messages": TURNS, "tools": [{"type": "function", "function": TOOL}], **SHORT, **GREEDY},
    ),
    (COMPLETIONS, {"prompt": ["One", "Two"], "logprobs": 1, "echo": True, **GREEDY, **SHORT}),
    (COMPLETIONS, {"prompt": "One", "n": 2, **SEEDED, **SHORT}),
    (RESPONSES, {"input": "Hi", "instructions": "Be brief.", "max_output_tokens": 8, **GREEDY}),
    (
        RESPONSES,
        {
            "input": ITEMS,
            "tools": [{"type": "function", "strict": False, **TOOL}],
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "max_output_tokens": 8,
            "enable_response_messages": True,
            **SEEDED,
        },
    ),
    (
        RESPONSES,
        {
            "input": "Hi",
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {"enum": ["yes"]}}},
            **GREEDY,
        },
    ),
    (MESSAGES, {"messages": BLOCKS, "system": "Be brief.", **GREEDY, **SHORT}),
    (MESSAGES, {"messages": TURNS, "top_k": 1, "stop_sequences": ["x"], **SHORT}),
    (
        MESSAGES,
        {"messages": TURNS, "tools": [{"name": "f", "input_schema": {"type": "object"}}], **SHORT}
        | GREEDY,
    ),
    (CHAT_BATCH, {"messages": [TURNS, DIALOGUE], "logprobs": True, **GREEDY, **SHORT}),
    (CHAT_BATCH, {"messages": [DIALOGUE], **SEEDED, **SHORT}),
    (COUNT_TOKENS, {"messages": BLOCKS}),
]
NOT_STREAMED = (CHAT_BATCH, COUNT_TOKENS)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each server answers to each body, not streamed and streamed."""
    folder = tmp_path_factory.mktemp("stock")
    model = make_tiny(folder / "model", vocab_size=49_216)
    found = {}
    for name, module in MODULES.items():
        with serving(model, folder / f"{name}.txt", FLAGS, module, TOGETHER) as (url, _):
            headers = {"Authorization": f"Bearer {API_KEY}"}
            with httpx2.Client(base_url=url, headers=headers, timeout=120) as http:
                found[name] = [answer(http, path, body) for path, body in asked()]
    return found


def asked() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, body in BODIES:
        for stream in (False,) if path in NOT_STREAMED else (False, True):
            usage = {"stream_options": {"include_usage": True}} if stream else {}
            more = {"stream": stream} | (usage if path in (CHAT, COMPLETIONS) else {})
            yield path, {"model": "smol", **body, **(more if path != COUNT_TOKENS else {})}


def answer(http: httpx2.Client, path: str, body: dict[str, Any]) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, (path, response.text)
    if not body.get("stream"):
        return common(response.json())
    return joined([(name, common(data)) for name, data in events_of(response.text)])


def common(value: Any) -> Any:
    """A value without what differs from answer to answer."""
    if isinstance(value, list):
        return [common(one) for one in value]
    if isinstance(value, dict):
        return {k: common(v) for k, v in value.items() if k not in OF_ONE}
    return value


def joined(events: list[tuple[str, Any]]) -> list[Any]:
    """The events, those that continue a text as one: a chunk has as many tokens as were ready."""
    found: list[Any] = []
    for name, data in events:
        texts: list[str] = []
        shape = json.dumps([name, without_texts(data, texts)], sort_keys=True)
        if found and texts and found[-1][0] == shape:
            found[-1][1] += "".join(texts)
        else:
            found.append([shape, "".join(texts)])
    return found


def without_texts(value: Any, texts: list[str], inside: str = "") -> Any:
    """What an event has beside the text that it adds, which goes into `texts`."""
    if isinstance(value, str) and inside in ("delta", "text", "content", "arguments"):
        texts.append(value)
        return ""
    if isinstance(value, list):
        return [without_texts(one, texts, inside) for one in value]
    if isinstance(value, dict):
        # The number of tokens of a chunk shows in these.
        left = {k: v for k, v in value.items() if k not in ("logprobs", "token_ids")}
        return {k: without_texts(v, texts, k) for k, v in left.items()}
    return value


@pytest.mark.parametrize("number", range(len(list(asked()))))
def test_the_same_answer(answers: dict[str, list[Any]], number: int) -> None:
    stock, ours = (answers[name][number] for name in MODULES)
    assert ours == stock
    assert ours


def test_the_answers_say_something(answers: dict[str, list[Any]]) -> None:
    """An empty or failed answer would be equal, too."""
    for (path, body), found in zip(asked(), answers["vLLM"], strict=True):
        if body.get("stream"):
            assert sum(len(text) for _, text in found) > 5, (path, found)
        else:
            assert "error" not in found


def test_joined_events_keep_their_order() -> None:
    def delta(text: str, index: int = 0) -> tuple[str, Any]:
        return "d", {"index": index, "delta": {"text": text}}

    events = [delta("a"), delta("b"), delta("c", 1), ("stop", {"index": 1})]
    assert [text for _, text in joined(events)] == ["ab", "c", ""]
    assert joined(events) == joined([delta("ab"), *events[2:]])
    assert joined(events) != joined([delta("ac"), *events[2:]])
