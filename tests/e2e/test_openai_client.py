"""Guided answers as a user of the openai client sees them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from divserve.decoding import METHODS
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
ALONE = [name for name, method in METHODS.items() if not method.amateurs + method.engines]
"""Methods of one model; `test_two_models` tests the others."""


@pytest.mark.parametrize("method", ALONE)
def test_every_method_answers_and_accounts_for_each_token(
    client: openai.OpenAI, method: str
) -> None:
    response = chat(client, guided(method, trace=True), temperature=0.7, seed=1)

    (choice,) = response.choices
    assert choice.message.content
    report = account(choice)
    steps = response.usage.completion_tokens
    assert report["method"] == method
    assert report["applied_steps"] == len(report["trace"]) == steps > 2
    assert tuple(report["mean"]) == METHODS[method].reports
    for name, mean in report["mean"].items():
        figures = [entry[name] for entry in report["trace"]]
        assert mean == pytest.approx(sum(figures) / steps, abs=1e-6)
    text = "".join(entry["token"] for entry in report["trace"])
    assert text.removesuffix("<|im_end|>") == choice.message.content


STACK = [
    guided("adacad"),
    {"method": "kl_temperature", "guide": {"without": QUESTION}, "trace": True},
]


def test_a_stack_with_two_guides(client: openai.OpenAI) -> None:
    """Streamed and whole; both divergences are reported, and they differ."""
    (whole,) = chat(client, STACK, temperature=0.8, seed=2).choices
    streamed = Streamed(chat(client, STACK, temperature=0.8, seed=2, stream=True))
    report = account(whole)
    assert report["method"] == "adacad+kl_temperature"
    assert streamed.text == {0: whole.message.content}
    assert any(abs(e["kl"] - e["kl_temperature.kl"]) > 0.01 for e in report["trace"])
    for entry in report["trace"]:
        expected = 0.8 * 2 ** -entry["kl_temperature.kl"]
        assert entry["temperature"] == pytest.approx(max(expected, 1e-4), rel=1e-3)
        assert entry["alpha"] == pytest.approx(entry["jsd"], abs=1e-6)


def test_a_preset_by_its_model_name(client: openai.OpenAI) -> None:
    """As an app that cannot be changed would: a model name and a marked document, nothing else."""
    assert "smol@faithful" in [model.id for model in client.models.list()]
    parts: list[Any] = [
        {"type": "text", "text": DOCUMENT, "name": "document"},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": parts}]
    preset = chat(client, model="smol@faithful", messages=messages)
    body = [{"method": m, "guide": {"documents": True}} for m in ("adacad", "kl_temperature")]
    spelt_out = chat(client, body, messages=messages)
    assert preset.model == "smol@faithful"
    found = {"guides": {"adacad": "marked", "kl_temperature": "marked"}}
    assert account(preset.choices[0]) == account(spelt_out.choices[0]) | found
    assert preset.choices[0].message.content == spelt_out.choices[0].message.content


@pytest.mark.parametrize("place", ["between", "role"])
def test_a_preset_on_an_ordinary_chat(client: openai.OpenAI, place: str) -> None:
    """The document stands between markers or in the system message: as with the guide in full."""
    marked, question = f"<document>{DOCUMENT}</document>", {"role": "user", "content": QUESTION}
    messages: list[Any] = [{"role": "system", "content": DOCUMENT}, question]
    if place == "between":
        messages = [{"role": "user", "content": marked + QUESTION}]
    preset = chat(client, model="smol@faithful", messages=messages)
    guide = {"messages": [question]}
    body = [{"method": m, "guide": guide} for m in ("adacad", "kl_temperature")]
    spelt_out = chat(client, body, messages=messages)
    assert preset.choices[0].message.content == spelt_out.choices[0].message.content
    found, given = account(preset.choices[0]), account(spelt_out.choices[0])
    assert found.pop("guides") == {"adacad": place, "kl_temperature": place}
    assert found == given
    assert found["mean"]["jsd"] > 0.01


def test_two_methods_that_clash(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'cad' and 'adacad' clash"):
        chat(client, [guided("cad"), guided("adacad")])


@pytest.mark.parametrize("method", ALONE)
def test_a_stream_gives_the_same_answer_and_trace(client: openai.OpenAI, method: str) -> None:
    (whole,) = chat(client, guided(method, trace=True)).choices
    streamed = Streamed(chat(client, guided(method, trace=True), stream=True))

    report = account(whole)
    assert streamed.text == {0: whole.message.content}
    assert [e["token_id"] for e in streamed.trace[0]] == [e["token_id"] for e in report["trace"]]
    assert streamed.finish == {0: whole.finish_reason}
    summary = streamed.summary[0]
    assert summary["mean"] == pytest.approx(report["mean"], abs=1e-4)
    for name in ("method", "applied_steps", "guide_prompt_tokens"):
        assert summary[name] == report[name]


def test_a_streamed_trace_comes_with_its_tokens(client: openai.OpenAI) -> None:
    """One token per chunk, or more where the server has to wait for a core."""
    chunks = Streamed(chat(client, TRACED, stream=True)).chunks
    for chunk in chunks[1:]:
        (choice,) = chunk.choices
        trace = account(choice)["trace"]
        assert trace
        assert "".join(entry["token"] for entry in trace) == choice.delta.content
    assert account(chunks[0].choices[0]) is None


def test_the_answer_follows_the_document_where_the_guide_pulls_away(client: openai.OpenAI) -> None:
    """The second stream makes the difference: the prompt and the sampling are the same."""
    plain = complete(client, max_tokens=3, prompt=PROMPT).choices[0].text
    against = {"method": "cfg", "scale": 0.0, "guide": {"prompt": "The capital of Italy is"}}
    assert "Lyon" in plain
    assert "Rome" in complete(client, against, max_tokens=3).choices[0].text


@pytest.mark.parametrize(
    "neutral",
    [guided(alpha=0.0), guided("cfg", scale=1.0), guided("kl_temperature", sigma=0.0)],
    ids=["cad", "cfg", "kl_temperature"],
)
def test_neutral_strength_is_plain_decoding(client: openai.OpenAI, neutral: Any) -> None:
    fields: Any = {"temperature": 0.8, "seed": 7, "top_p": 0.9, "presence_penalty": 0.4}
    plain = chat(client, **fields).choices[0]
    assert chat(client, neutral, **fields).choices[0].message.content == plain.message.content


def test_several_choices_have_their_own_accounts(client: openai.OpenAI) -> None:
    fields: Any = {"n": 3, "temperature": 1.0, "seed": 3}
    response = chat(client, TRACED, **fields)
    streamed = Streamed(chat(client, TRACED, stream=True, **fields))

    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in response.choices}) == 3
    for choice in response.choices:
        report = account(choice)
        assert "".join(entry["token"] for entry in report["trace"]) == choice.message.content
        assert streamed.text[choice.index] == choice.message.content
        assert streamed.summary[choice.index]["applied_steps"] == report["applied_steps"]
        ids = [entry["token_id"] for entry in report["trace"]]
        assert [entry["token_id"] for entry in streamed.trace[choice.index]] == ids


def test_a_seed_repeats_the_answer(client: openai.OpenAI) -> None:
    def answer(seed: int) -> str:
        response = chat(client, guided("adacad"), temperature=1.0, seed=seed)
        return str(response.choices[0].message.content)

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in (1, 2, 3)}) > 1


def test_seeded_requests_can_be_mixed_with_unseeded_ones(client: openai.OpenAI) -> None:
    """Both in one batch: vLLM's CPU sampler once failed on this."""
    fields: Any = {"n": 2, "temperature": 1.0, "max_tokens": 30}
    streams = [
        chat(client, guided(), stream=True, **fields, **({"seed": 1} if i % 2 else {}))
        for i in range(4)
    ]
    for stream in streams:
        assert Streamed(stream).summary.keys() == {0, 1}


@pytest.mark.parametrize("continuous", [False, True])
def test_usage_counts_the_tokens_of_the_primary_only(
    client: openai.OpenAI, continuous: bool
) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": continuous}
    plain = chat(client).usage
    response = chat(client, guided())
    streamed = Streamed(chat(client, guided(), stream=True, stream_options=options))

    assert response.usage.prompt_tokens == plain.prompt_tokens
    assert streamed.usage.prompt_tokens == plain.prompt_tokens
    assert streamed.usage.completion_tokens == streamed.summary[0]["applied_steps"] == 12
    assert 0 < account(response.choices[0])["guide_prompt_tokens"] < plain.prompt_tokens
    assert streamed.chunks[-1].choices == []


def test_chunks_of_several_tokens_carry_several_entries(client: openai.OpenAI) -> None:
    streamed = Streamed(chat(client, TRACED, stream=True, extra_body={"stream_interval": 4}))
    assert len(streamed.chunks) < 8
    assert "".join(entry["token"] for entry in streamed.trace[0]) == streamed.text[0]
    assert streamed.summary[0]["applied_steps"] == 12


def test_one_token_is_enough(client: openai.OpenAI) -> None:
    streamed = Streamed(chat(client, TRACED, stream=True, max_tokens=1))
    assert streamed.summary[0]["applied_steps"] == len(streamed.trace[0]) == 1


@pytest.mark.parametrize("decoding", [{}, {"decoding": None}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_plain_request_carries_no_account(
    client: openai.OpenAI, stream: bool, decoding: dict[str, Any]
) -> None:
    response = chat(client, stream=stream, extra_body=decoding)
    chunks = list(response) if stream else [response]
    assert all(account(choice) is None for chunk in chunks for choice in chunk.choices)
