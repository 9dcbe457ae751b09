"""What is asked for an item, and what is kept of the stream that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from divserve.evaluation import arms
from divserve.evaluation.answers import Answer
from divserve.evaluation.arms import Arm
from divserve.evaluation.client import Server
from divserve.evaluation.items import Item
from divserve.evaluation.traces import TRACE
from tests.evaluation.listed import LISTED

ITEM = Item(
    id="1", messages=[{"role": "user", "content": "The text. What?"}], document="The text.",
    answers=["it"],
)  # fmt: skip


def entry(token: int, likeliest: int, kl: float | None) -> dict[str, Any]:
    return {
        "token": f"token_id:{token}", "kl": kl,
        "top": {"primary": [{"token": f"token_id:{likeliest}", "logprob": -0.1}]},
    }  # fmt: skip


ACCOUNT = {
    "method": "cad", "applied_steps": 3, "guide_prompt_tokens": 9,
    "mean": {"kl": 0.5, "alpha": 1.0, "entropy": None},
    "trace": [entry(5, 5, 0.25), entry(6, 7, None), entry(8, 8, 0.75)],
}  # fmt: skip


def chunk(content: str, ids: list[int], last: dict[str, Any] | None = None) -> ChatCompletionChunk:
    tops = [{"token": "a", "logprob": 0.0}, {"token": "b", "logprob": 0.0}]
    choice = {
        "index": 0, "delta": {"content": content}, "token_ids": ids,
        "logprobs": {"content": [{"token": "a", "logprob": 0.0, "top_logprobs": tops}] * len(ids)},
        **({} if last is None else {"finish_reason": "stop", "decoding": last}),
    }  # fmt: skip
    return ChatCompletionChunk.model_validate(
        {"id": "x", "created": 1, "model": "m", "object": "chat.completion.chunk",
         "choices": [choice]}
    )  # fmt: skip


def asked(
    arm: Arm, monkeypatch: pytest.MonkeyPatch, account: dict[str, Any] | None
) -> tuple[Answer, dict[str, Any]]:
    """The answer of an arm, and the request's body."""
    bodies: list[dict[str, Any]] = []

    async def stream() -> AsyncIterator[ChatCompletionChunk]:
        for one in (chunk("It", [5]), chunk(" is", [6, 8]), chunk("", [], account)):
            yield one

    async def create(**body: Any) -> AsyncIterator[ChatCompletionChunk]:
        bodies.append(body)
        return stream()

    async def run() -> Answer:
        server = Server("http://x", None)
        monkeypatch.setattr(server._client.chat.completions, "create", create)
        try:
            return await server.ask("own", ITEM, arm, "m", 3, LISTED)
        finally:
            await server.close()

    answer = asyncio.run(run())
    return answer, {**bodies[0], **bodies[0]["extra_body"]}


def test_a_greedy_answer_keeps_what_its_trace_says(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = [{"method": "cad"}, {"method": "kl_temperature"}]
    answer, body = asked(arms.of_method("both", stack, 0), monkeypatch, ACCOUNT)
    assert [one.get("trace") for one in body["decoding"]] == [TRACE, None]
    assert body["return_tokens_as_token_ids"] is True
    assert "logprobs" not in body
    assert (answer.text, answer.tokens, answer.rows) == ("It is", [5, 6, 8], 2)
    assert (answer.applied, answer.swapped, answer.kls) == (3, 1, [0.25, 0.75])
    assert answer.means == {"kl": 0.5, "alpha": 1.0}
    assert answer.likeliest == []


def test_a_sampled_answer_keeps_its_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    account = {key: value for key, value in ACCOUNT.items() if key != "trace"}
    arm = arms.of_method("cad", [{"method": "cad"}], 1)
    answer, body = asked(arm, monkeypatch, account)
    assert "trace" not in body["decoding"][0]
    assert (body["logprobs"], body["temperature"]) == (True, 1)
    assert answer.entropy == pytest.approx(0.6931, abs=1e-4)
    assert (answer.swapped, answer.kls, answer.likeliest) == (None, [], [])
    answer, body = asked(arms.plain(1), monkeypatch, None)
    assert answer.likeliest == [[0, 0]] * 3
    assert (answer.applied, answer.rows, answer.guided) == (None, 1, False)
    assert "decoding" not in body
