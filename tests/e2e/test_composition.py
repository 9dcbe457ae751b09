"""Guidance together with what else a request can ask for: tools, schemas, logprobs, prompts."""

from __future__ import annotations

import json
import math
from typing import Any

import openai
import pytest

from tests.support.chat import (
    DOCUMENT,
    PROMPT,
    QUESTION,
    Streamed,
    account,
    chat,
    complete,
    guided,
)

TRACED = guided(trace=True)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "look_up"}}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer(client: openai.OpenAI, stream: bool) -> None:
    full = chat(client, guided()).choices[0].message.content
    words = full.split(" ")
    stop = f" {words[1]} {words[2]}"
    # As many as our flag allows, which is more than vLLM's default.
    others = [f"<never {number}>" for number in range(15)]
    response = chat(client, TRACED, stop=[*others, stop], stream=stream)

    if stream:
        streamed = Streamed(response)
        text, finish, trace = streamed.text[0], streamed.finish[0], streamed.trace[0]
        steps = streamed.summary[0]["applied_steps"]
    else:
        (choice,) = response.choices
        text, finish, trace = choice.message.content, choice.finish_reason, account(choice)["trace"]
        steps = response.usage.completion_tokens
    assert (text, finish) == (words[0], "stop")
    assert steps == len(trace)
    assert "".join(entry["token"] for entry in trace).startswith(words[0] + stop)


def test_logprobs_are_those_of_the_guided_distribution(client: openai.OpenAI) -> None:
    """They are log_softmax((1+a)·z1 − a·z2), from the full logprobs of two plain requests."""
    alpha, top = 0.8, 20
    ids: Any = {"return_tokens_as_token_ids": True}

    def logprobs(prompt: str, count: int, decoding: Any = None) -> dict[str, float]:
        response = complete(
            client, decoding, prompt=prompt, logprobs=count, max_tokens=1, extra_body=dict(ids)
        )
        found: dict[str, float] = response.choices[0].logprobs.top_logprobs[0]
        return found

    z1, z2 = logprobs(PROMPT, -1), logprobs(PROMPT.removeprefix(DOCUMENT), -1)
    z = {token: (1 + alpha) * z1[token] - alpha * z2[token] for token in z1}
    total = math.log(math.fsum(math.exp(value) for value in z.values()))
    best = sorted(z, key=lambda token: -z[token])[:top]

    found = logprobs(PROMPT, top, guided(alpha=alpha))

    assert list(found)[:5] == best[:5]
    assert {t: found[t] for t in best} == pytest.approx({t: z[t] - total for t in best}, abs=2e-4)


def test_chat_logprobs_cover_the_same_tokens_as_the_trace(client: openai.OpenAI) -> None:
    (choice,) = chat(client, TRACED, logprobs=True, top_logprobs=3).choices
    trace = account(choice)["trace"]
    assert [t.token for t in choice.logprobs.content] == [entry["token"] for entry in trace]


def test_a_json_schema_holds_under_guidance(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"enum": ["Paris", "Lyon", "Rome"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    traced = guided("adacad", trace={"top": 3})
    fields: Any = {"response_format": wanted, "logprobs": True, "top_logprobs": 3}
    response = chat(client, traced, max_tokens=60, **fields)

    answer = json.loads(response.choices[0].message.content)
    assert answer.keys() == {"capital"}
    assert account(response.choices[0])["applied_steps"] == response.usage.completion_tokens
    # What the grammar forbids has no probability; log-probs show it all the same.
    steps = zip(
        account(response.choices[0])["trace"], response.choices[0].logprobs.content, strict=True
    )
    for entry, logprobs in steps:
        shown = {(t.token, t.logprob) for t in logprobs.top_logprobs if t.logprob > -9999}
        guided_tokens = {(t["token"], t["logprob"]) for t in entry["top"]["guided"]}
        assert {token for token, _ in guided_tokens} == {token for token, _ in shown}
        assert max(p for _, p in guided_tokens) == pytest.approx(logprobs.logprob, abs=1e-4)
        assert len(entry["top"]["primary"]) == len(entry["top"]["guide"]) == 3


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_tool_is_called_under_guidance(client: openai.OpenAI, choice: Any) -> None:
    fields: Any = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 80}
    response = chat(client, TRACED, **fields)
    streamed = Streamed(chat(client, TRACED, stream=True, **fields))

    (call,) = response.choices[0].message.tool_calls
    report = account(response.choices[0])
    assert call.function.name == "look_up"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"city"}
    assert report["applied_steps"] == response.usage.completion_tokens == len(report["trace"])
    deltas = [c.choices[0].delta.tool_calls[0] for c in streamed.chunks if _calls(c)]
    assert json.loads("".join(d.function.arguments or "" for d in deltas)) == arguments
    assert len(streamed.trace[0]) == streamed.summary[0]["applied_steps"]
    assert [e["token_id"] for e in streamed.trace[0]] == [e["token_id"] for e in report["trace"]]


def _calls(chunk: Any) -> bool:
    return bool(chunk.choices and chunk.choices[0].delta.tool_calls)


def test_guide_messages_are_rendered_like_the_messages(client: openai.OpenAI) -> None:
    """Giving the shortened messages in full has the same effect as leaving the document out."""
    messages = [{"role": "user", "content": QUESTION}]
    (without,) = chat(client, guided()).choices
    (given,) = chat(client, {"method": "cad", "guide": {"messages": messages}}).choices
    assert given.message.content == without.message.content
    assert account(given)["mean"] == pytest.approx(account(without)["mean"], abs=1e-4)
    assert account(given)["guide_prompt_tokens"] == account(without)["guide_prompt_tokens"]


def test_cfg_without_a_guide_starts_from_the_last_prompt_token(client: openai.OpenAI) -> None:
    assert account(chat(client, {"method": "cfg"}).choices[0])["guide_prompt_tokens"] == 1
    (choice,) = complete(client, {"method": "cfg"}, prompt=[504, 3575, 282, 4649]).choices
    (same,) = complete(
        client, {"method": "cfg", "guide": {"prompt": [4649]}}, prompt=[504, 3575, 282, 4649]
    ).choices
    assert choice.text == same.text


def test_completions_take_many_prompts(client: openai.OpenAI) -> None:
    prompts = [PROMPT, DOCUMENT + "The capital of Germany is"]
    fields: Any = {"prompt": prompts, "n": 2, "temperature": 1.0, "seed": 5, "max_tokens": 5}
    response = complete(client, TRACED, **fields)
    streamed = Streamed(complete(client, TRACED, stream=True, **fields))

    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    for choice in response.choices:
        trace = account(choice)["trace"]
        assert "".join(entry["token"] for entry in trace) == choice.text
        assert streamed.text[choice.index] == choice.text
        assert len(streamed.trace[choice.index]) == streamed.summary[choice.index]["applied_steps"]


def test_echoed_tokens_are_not_accounted_for(client: openai.OpenAI) -> None:
    (choice,) = complete(client, TRACED, echo=True, max_tokens=3).choices
    streamed = Streamed(complete(client, TRACED, echo=True, max_tokens=3, stream=True))
    assert choice.text.startswith(PROMPT)
    assert account(choice)["applied_steps"] == len(account(choice)["trace"]) == 3
    assert streamed.text[0] == choice.text
    assert len(streamed.trace[0]) == 3


def test_token_ids_guide_token_ids(client: openai.OpenAI) -> None:
    decoding = {"method": "cad", "guide": {"prompt": [4649, 314]}}
    response = complete(client, decoding, prompt=[[504, 3575, 282, 4649, 314], [504, 314]])
    assert [account(choice)["guide_prompt_tokens"] for choice in response.choices] == [2, 2]
