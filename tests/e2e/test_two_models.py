"""A real server with an amateur and a small engine, as users of the openai client see it.

The models are tiny and random, so that an answer takes milliseconds: what is checked is the server.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from divserve.decoding import METHODS
from tests.support.chat import MESSAGES, PROMPT, Streamed, account, chat, complete
from tests.support.metrics import Changes, scraped
from tests.support.models import make_tiny
from tests.support.server import API_KEY, get, hang_up, serving

NEVER = {"method": "entropy_switch", "threshold": 100.0, "window": 2, "min_run": 3, "trace": True}
LEAVERS = 500
AT_ONCE = 24
GRACE_S = 30
ENGINE_TIMEOUT_S = 8
"""Longer than a machine that also runs other tests lets an engine wait for a core."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address of the server, and its process id."""
    folder = tmp_path_factory.mktemp("two")
    models = [
        make_tiny(folder / name, vocab_size=size, seed=seed)
        for seed, (name, size) in enumerate(
            [("large", 49_216), ("small", 49_152), ("amateur", 49_152), ("tuned", 49_280)]
        )
    ]
    large, small, amateur, tuned = map(str, models)
    more = ["--amateur", amateur, "--tuned", tuned, "--small", small, "--max-num-seqs", "32"]
    more += ["--engine-timeout", str(ENGINE_TIMEOUT_S)]
    with serving(Path(large), folder / "log.txt", more) as (url, process):
        yield url, process.pid


@pytest.fixture(scope="module")
def client(started: tuple[str, int]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{started[0]}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def switch(client: openai.OpenAI) -> dict[str, Any]:
    """Switching at the mean entropy, so that these models take turns."""
    bits = account(chat(client, NEVER, max_tokens=60).choices[0])["mean"]["entropy_bits"]
    return {**NEVER, "threshold": bits}


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.amateurs])
def test_methods_of_helpers(client: openai.OpenAI, method: str) -> None:
    """Whole and streamed alike; the account has a figure of every report for every token."""
    body = {"method": method, "trace": True}
    (choice,) = chat(client, body, temperature=0.8, seed=3).choices
    report = account(choice)
    assert report["applied_steps"] == len(report["trace"]) == 12
    assert tuple(report["mean"]) == METHODS[method].reports
    assert 0 <= report["mean"]["overlap"] <= 1
    streamed = Streamed(chat(client, body, temperature=0.8, seed=3, stream=True))
    assert streamed.text == {0: choice.message.content}


def test_switching_whole_and_streamed(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    response = chat(client, switch, max_tokens=60)
    (choice,) = response.choices
    report = account(choice)
    models = [entry["model"] for entry in report["trace"]]
    assert response.usage.completion_tokens == report["applied_steps"] == len(models) == 60
    assert report["tokens"] == {name: models.count(name) for name in ("small", "large")}
    assert report["switches"] == sum(a != b for a, b in pairwise(models)) > 3
    # Two tiny models of one size, but for the padding of one's vocabulary.
    assert 0 < report["compute_saved"] < 0.01
    streamed = Streamed(chat(client, switch, max_tokens=60, stream=True))
    assert streamed.text == {0: choice.message.content}
    text = "".join(entry["token"] for entry in report["trace"])
    assert choice.message.content.strip("\ufffd") in text


def test_choices_logprobs_and_penalties(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "n": 3,
        "seed": 7,
        "temperature": 1.0,
        "logprobs": 2,
        "frequency_penalty": 0.5,
        "max_tokens": 40,
    }
    first, second = (complete(client, switch, **fields) for _ in range(2))
    assert [c.text for c in first.choices] == [c.text for c in second.choices]
    assert len({c.text for c in first.choices}) == 3
    for choice in first.choices:
        assert len(choice.logprobs.tokens) == account(choice)["applied_steps"] == 40
    assert first.usage.completion_tokens == 120


def test_a_schema_moves_along(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    """A grammar never ends in a 500: the answer keeps to it across every seam."""
    extra = {"structured_outputs": {"regex": '\\{"name": "[a-z]{20,30}"\\}'}}
    for shift in (-0.5, 0.0, 0.5):
        body = {**switch, "min_run": 1, "window": 1, "threshold": switch["threshold"] + shift}
        (choice,) = chat(client, body, max_tokens=80, extra_body=extra).choices
        assert 20 <= len(json.loads(choice.message.content)["name"]) <= 30
        assert choice.finish_reason == "stop"


def test_the_small_model_by_name(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "smol@small" in names
    small, large = (
        client.completions.create(model=name, prompt=PROMPT, temperature=0, max_tokens=8)
        for name in ("smol@small", "smol")
    )
    assert small.model == "smol@small"
    assert small.choices[0].text != large.choices[0].text
    assert complete(client, NEVER, max_tokens=8).choices[0].text == small.choices[0].text
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, NEVER, model="smol@small")
    assert refused.value.param == "model"


def test_500_clients_that_leave_in_the_middle(
    started: tuple[str, int], switch: dict[str, Any]
) -> None:
    """Aborted at random instants: no request, no KV block, no answer stays on either engine."""
    url, _ = started
    changes = Changes(lambda: scraped(url))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda seed: leave(url, switch, random.Random(seed)), range(LEAVERS)))
    deadline = time.monotonic() + GRACE_S
    while any((left := gauges(url)).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(left) == 6
    assert set(left.values()) == {0.0}
    # A server that had refused them would have nothing left either.
    aborted = changes.of("requests_total", method="entropy_switch", outcome="aborted")
    assert aborted > LEAVERS / 2


def leave(url: str, switch: dict[str, Any], rng: random.Random) -> None:
    """Asks for a long answer that moves often, and hangs up."""
    body = {
        "prompt": "word " * rng.randrange(1, 60),
        "decoding": {**switch, "min_run": 1, "window": 1},
        "stream": rng.random() < 0.5,
        "n": rng.randrange(1, 3),
        "max_tokens": 400,
        "ignore_eos": True,
    }
    hang_up(url, body, rng.random())


def gauges(url: str) -> dict[str, float]:
    """What both engines say of their load."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    ours = ("divserve_engine_requests", "divserve_engine_kv_cache_usage")
    starts = tuple(f"{name}{{" for name in (*names, *ours))
    lines = get(url, "/metrics").splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(starts)}


def test_the_small_engine_hangs(
    started: tuple[str, int], client: openai.OpenAI, switch: dict[str, Any]
) -> None:
    """Answers go on with the large model, new ones work, /health tells. Runs last.

    `tests.engine.test_switching` kills it.
    """
    url, server = started
    assert health(url) == {"status": "ok", "engines": {"large": "ok", "small": "ok"}}

    def ask(_: int) -> Any:
        return complete(client, switch, max_tokens=700)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, i) for i in range(8)]
        time.sleep(0.7)
        os.kill(small_engine(server), signal.SIGSTOP)
        choices = [answer.result(timeout=120).choices[0] for answer in answers]
    for choice in choices:
        report = account(choice)
        assert report["applied_steps"] == 700
        assert report["trace"][-1]["model"] == "large"
        assert report["tokens"]["small"] > 0
    assert health(url) == {"status": "degraded", "engines": {"large": "ok", "small": "dead"}}
    assert account(chat(client, switch).choices[0])["tokens"] == {"small": 0, "large": 12}
    assert chat(client).choices[0].message.content
    with pytest.raises(openai.InternalServerError) as stopped:
        client.chat.completions.create(model="smol@small", messages=MESSAGES)
    assert (stopped.value.status_code, stopped.value.code) == (503, "engine_unavailable")


def small_engine(server: int) -> int:
    """The process id of the small engine: the server starts it first."""
    children = " ".join(f.read_text() for f in Path(f"/proc/{server}/task").glob("*/children"))
    engines = [
        pid
        for pid in map(int, children.split())
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(engines) == 2
    return min(engines)


def health(url: str) -> Any:
    with urllib.request.urlopen(f"{url}/health", timeout=30) as response:
        return json.loads(response.read())
