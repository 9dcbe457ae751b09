"""Spans of a real server at a real collector, over the wire; `test_drain` has the last ones."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.support.chat import DOCUMENT, account, chat, guided
from tests.support.otlp import Collector

OURS, VLLM = "divserve.request", "llm_request"
SERVER, ERROR = 2, 2
"""Numeric values of OpenTelemetry's span kinds and status codes."""


@dataclass(frozen=True)
class Traced:
    """A server's client and the collector of its spans."""

    client: openai.OpenAI
    collector: Collector


@pytest.fixture
def traced(tiny_client: openai.OpenAI, collector: Collector) -> Traced:
    return Traced(tiny_client, collector)


def parent() -> tuple[str, str, dict[str, str]]:
    """A client's trace and span ids, and the header that carries them."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-01"}


def ask(traced: Traced, header: dict[str, str], **fields: Any) -> Any:
    """Requests eight guided tokens."""
    return chat(
        traced.client,
        guided("adacad"),
        max_tokens=8,
        extra_headers=header,
        extra_body={"ignore_eos": True},
        **fields,
    )


def test_a_guided_request(traced: Traced) -> None:
    trace, span, header = parent()
    start = time.monotonic()
    answer = ask(traced, header)
    took = time.monotonic() - start
    spans = traced.collector.spans(trace, {OURS, VLLM})
    ours, engine = spans[OURS], spans[VLLM]
    assert ours["parent"] == engine["parent"] == span
    assert (ours["kind"], ours["status"]) == (SERVER, 0)
    figures = account(answer.choices[0])["mean"]
    assert {name: ours[name] for name in ours if "." in name} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "smol",
        "gen_ai.response.id": answer.id,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": 8,
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "divserve.method": "adacad",
        "divserve.outcome": "ok",
        "divserve.applied_steps": 8,
        "divserve.guide_prompt_tokens": ours["divserve.guide_prompt_tokens"],
        "divserve.time_to_first_token": ours["divserve.time_to_first_token"],
        **{f"divserve.mean.{name}": pytest.approx(mean) for name, mean in figures.items()},
    }
    assert 0 < ours["divserve.guide_prompt_tokens"] < answer.usage.prompt_tokens
    assert 0 < ours["divserve.time_to_first_token"] < ours["seconds"] < took
    assert {"jsd", "entropy"} <= figures.keys()
    assert engine["gen_ai.usage.completion_tokens"] == 8


def test_a_stream_and_a_plain_request(traced: Traced) -> None:
    trace, _, header = parent()
    for _ in ask(traced, header, stream=True):
        pass
    streamed = traced.collector.spans(trace, {OURS})[OURS]
    assert streamed["divserve.applied_steps"] == streamed["gen_ai.usage.output_tokens"] == 8
    trace, _, header = parent()
    chat(traced.client, extra_headers=header)
    plain = traced.collector.spans(trace, {OURS, VLLM})[OURS]
    assert plain["divserve.method"] == "plain"
    assert not [name for name in plain if name.startswith("divserve.mean")]


def test_a_refused_request(traced: Traced) -> None:
    """The span has the reason; nothing was decoded, so vLLM has no span."""
    trace, span, header = parent()
    body = {"method": "adacad", "guide": {"without": f"not in it: {DOCUMENT}"}}
    with pytest.raises(openai.BadRequestError):
        chat(traced.client, body, extra_headers=header)
    refused = traced.collector.spans(trace, {OURS})
    assert refused.keys() == {OURS}
    assert refused[OURS]["parent"] == span
    assert refused[OURS]["divserve.outcome"] == "client_error"
    assert refused[OURS]["http.response.status_code"] == 400
    assert refused[OURS]["error.type"] == "invalid_request_error"
