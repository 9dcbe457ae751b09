"""Two API processes in front of one engine, or of two data-parallel ranks.

Each process answers, each rank works, and their metrics are added up.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.chat import PROMPT, account, chat, guided
from tests.support.data_parallel import FLAGS as RANKS
from tests.support.metrics import documented, families, parse, scraped
from tests.support.platform import cpu_only
from tests.support.server import API_KEY, TOGETHER, hang_up, serving

REQUESTS, LEAVING = 24, 8
TOKENS = 200
COUNT = "divserve_requests_total"
LONG = {
    "prompt": PROMPT,
    "decoding": guided("adacad"),
    "stream": True,
    "max_tokens": TOKENS,
    "ignore_eos": True,
}
GRACE_S = 30
FLAGS = ("--api-server-count", "2", "--log-format", "json", "--max-model-len", "256")


@pytest.mark.long
@pytest.mark.parametrize(
    "ranks", [1, pytest.param(2, marks=cpu_only("one GPU has no second rank"))]
)
def test_guided_requests_over_two_processes(
    tiny_with_tokenizer: Path, tmp_path: Path, ranks: int
) -> None:
    log = tmp_path / "log.txt"
    more: Any = (RANKS, TOGETHER) if ranks > 1 else ((), {})
    flags = (*FLAGS, *more[0])
    with serving(tiny_with_tokenizer, log, flags, environment=more[1]) as (url, process):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda i: ask(url, stream=i % 2 == 0), range(REQUESTS)))
        assert Counter(answers) == {(8, 8): REQUESTS}
        text = scraped(url)
        with ThreadPoolExecutor(LEAVING) as pool:
            list(pool.map(lambda _: hang_up(url, LONG, after_s=0.3), range(LEAVING)))
        await_idle(url)
        left = parse(scraped(url))
        with ThreadPoolExecutor(LEAVING) as pool:
            begun = Barrier(LEAVING + 1)
            under_way = [pool.submit(ask_long, url, begun) for _ in range(LEAVING)]
            begun.wait(GRACE_S)
            process.terminate()
            assert {answer.result() for answer in under_way} == {("length", TOKENS)}
        assert process.wait(30) == 0
    tokens = by_engine(text, "vllm:generation_tokens_total")
    assert tokens.keys() == {str(rank) for rank in range(ranks)}
    assert all(tokens.values())
    assert sum(tokens.values()) == 8 * REQUESTS
    assert sum(by_engine(text, "vllm:e2e_request_latency_seconds_count").values()) == REQUESTS
    samples = parse(text)
    ended = frozenset({("method", "adacad"), ("outcome", "ok")})
    assert samples[COUNT, ended] == REQUESTS
    assert samples["divserve_guided_steps_total", frozenset()] == 8 * REQUESTS
    assert samples["divserve_unguided_steps_total", frozenset()] == 0
    assert samples["divserve_pair_wait_seconds_count", frozenset()] == REQUESTS
    assert samples["divserve_engine_up", frozenset({("engine", "large")})] == 1
    outcomes = {dict(labels)["outcome"]: n for (name, labels), n in left.items() if name == COUNT}
    assert outcomes["aborted"] > 0
    assert sum(outcomes.values()) == REQUESTS + LEAVING
    # In this mode a family appears with its first sample.
    assert families(text).keys() <= documented().keys()
    assert len(processes(log)) == 2, "both have answered"


def by_engine(text: str, name: str) -> dict[str, float]:
    """A metric of vLLM's, by the number of its engine."""
    return {
        sample.labels["engine"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def ask(url: str, stream: bool) -> tuple[int, int]:
    """Steps and tokens of one guided answer, over its own connection."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        options: dict[str, Any] = {"max_tokens": 8, "extra_body": {"ignore_eos": True}}
        if not stream:
            answer = chat(client, guided("adacad"), **options)
            return account(answer.choices[0])["applied_steps"], answer.usage.completion_tokens
        usage = {"include_usage": True}
        chunks = list(chat(client, guided("adacad"), stream=True, stream_options=usage, **options))
        choices = [choice for chunk in chunks for choice in chunk.choices]
        return account(choices[-1])["applied_steps"], chunks[-1].usage.completion_tokens


def ask_long(url: str, begun: Barrier) -> tuple[str | None, int]:
    """Finish reason and tokens of a long answer that began before the server was told to stop."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        extra = {"decoding": LONG["decoding"], "ignore_eos": True}
        usage: Any = {"include_usage": True}
        stream: Any = client.completions.create(
            model="smol", prompt=PROMPT, max_tokens=TOKENS, stream=True,
            stream_options=usage, extra_body=extra,
        )  # fmt: skip
        chunks = [next(iter(stream))]
        begun.wait(GRACE_S)
        chunks += stream
        return chunks[-2].choices[0].finish_reason, chunks[-1].usage.completion_tokens


def await_idle(url: str) -> None:
    """Waits until the engine has nothing to do: what clients left behind has been aborted."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        running = [
            float(line.split()[-1])
            for line in scraped(url).splitlines()
            if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
        ]
        if running and not any(running):
            return
        time.sleep(0.2)
    raise AssertionError(f"still running: {running}")


def processes(log: Path) -> set[int]:
    """The processes that wrote the log lines of requests."""
    lines = [line[line.index("{") :] for line in log.read_text().splitlines() if "{" in line]
    found = [json.loads(line) for line in lines if '"event": "request"' in line]
    return {line["pid"] for line in found if line["route"] == "/v1/chat/completions"}
