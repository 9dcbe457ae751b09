"""Spans of a real server at a real collector, over the wire."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.chat import DOCUMENT, MESSAGES, account, chat, guided
from tests.support.otlp import Collector, collecting
from tests.support.server import API_KEY, STOP_TIMEOUT_S, serving

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="divserve[otel] is not here")
pytest.importorskip("opentelemetry.proto", reason="divserve[otel] is not here")

OURS, VLLM = "divserve.request", "llm_request"
SERVER, ERROR = 2, 2
"""Numbers of OpenTelemetry's span kinds and status codes."""


@dataclass(frozen=True)
class Traced:
    """A server and where its spans go."""

    process: subprocess.Popen[bytes]
    client: openai.OpenAI
    collector: Collector
    log: Path


@pytest.fixture(scope="module")
def traced(tiny_with_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    log = tmp_path_factory.mktemp("traced") / "log.txt"
    with collecting() as collector:
        flags = ("--otlp-traces-endpoint", collector.url)
        with serving(tiny_with_tokenizer, log, flags) as (url, process):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)
            with client:
                yield Traced(process, client, collector, log)


def parent() -> tuple[str, str, dict[str, str]]:
    """A client's trace, its span, and the header that names them."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return trace, span, {"traceparent": f"00-{trace}-{span}-01"}


def ask(traced: Traced, header: dict[str, str], **fields: Any) -> Any:
    """Eight tokens, guided."""
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
    """With the reason; nothing was decoded, so vLLM has no span."""
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


def test_the_last_spans_are_sent_before_the_server_ends(traced: Traced) -> None:
    """The last of the module: exporters send every five seconds, and the server ends sooner."""
    trace, _, header = parent()
    ask(traced, header, messages=MESSAGES)
    traced.process.send_signal(signal.SIGTERM)
    assert traced.process.wait(STOP_TIMEOUT_S) == 0
    # One of each: the guide's row is no request of its own.
    assert traced.collector.count(trace) == {OURS: 1, VLLM: 1}
    assert "Traceback" not in traced.log.read_text()
