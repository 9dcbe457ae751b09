"""A real server with an amateur and a small engine, as users of the openai client see it."""

from __future__ import annotations

import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import openai
import psutil
import pytest

from divserve.decoding import METHODS
from tests.support.chat import PROMPT, Streamed, account, chat, complete
from tests.support.held import held
from tests.support.metrics import Changes, scraped
from tests.support.server import Started, get, hang_up

TOP = {"top": 2}
NEVER = {"method": "entropy_switch", "threshold": 100.0, "window": 2, "min_run": 3, "trace": TOP}
LEAVERS = 60
AT_ONCE = 24
GRACE_S = 30


@pytest.fixture(scope="module")
def client(tiny_client: openai.OpenAI) -> openai.OpenAI:
    return tiny_client


@pytest.fixture(scope="module")
def switch(client: openai.OpenAI) -> dict[str, Any]:
    """Parameters with which these models switch often."""
    return at_the_mean(client)


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.amateurs])
def test_methods_of_amateurs(client: openai.OpenAI, method: str) -> None:
    """Whole and streamed answers agree; the account has every reported figure for every token."""
    body = {"method": method, "trace": True}
    (choice,) = chat(client, body, temperature=0.8, seed=3).choices
    report = account(choice)
    assert report["applied_steps"] == len(report["trace"]) == 12
    assert tuple(report["mean"]) == METHODS[method].reports
    assert 0 <= report["mean"]["overlap"] <= 1
    streamed = Streamed(chat(client, body, temperature=0.8, seed=3, stream=True))
    assert streamed.text == {0: choice.message.content}


def test_a_schema_beside_what_drops_tokens(client: openai.OpenAI) -> None:
    """The grammar's tokens are chosen even where ``contrastive`` has dropped all of them."""
    extra = {"structured_outputs": {"regex": '\\{"name": "[a-z]{5,9}"\\}'}}
    for alpha in (0.1, 1.0):
        body = {"method": "contrastive", "alpha": alpha, "trace": True}
        (choice,) = chat(client, body, max_tokens=40, extra_body=extra).choices
        assert 5 <= len(json.loads(choice.message.content)["name"]) <= 9
        assert all(entry["candidates"] >= 1 for entry in account(choice)["trace"])


def test_switching_whole_and_streamed(client: openai.OpenAI, switch: dict[str, Any]) -> None:
    response = chat(client, switch, max_tokens=60)
    (choice,) = response.choices
    report = account(choice)
    models = [entry["model"] for entry in report["trace"]]
    assert response.usage.completion_tokens == report["applied_steps"] == len(models) == 60
    assert report["tokens"] == {name: models.count(name) for name in ("small", "large")}
    for entry in report["trace"]:
        assert list(entry["top"]) == ["primary", "guided"]
        raw, guided = entry["top"].values()
        assert [t["token"] for t in raw] == [t["token"] for t in guided]
        # Ids that only the larger vocabulary has are not sampled.
        assert raw[0]["logprob"] == pytest.approx(guided[0]["logprob"], abs=0.01)
        assert guided[0]["token"] == entry["token"]
        assert len(guided) == 2
    assert report["switches"] == sum(a != b for a, b in pairwise(models)) > 3
    # Two tiny models of the same size, except for the padding of one vocabulary.
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
    """A grammar never ends in a 500: the answer follows it across every hand-off."""
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


def test_clients_that_leave_in_the_middle(tiny_server: Started, switch: dict[str, Any]) -> None:
    """No request, KV block, answer, process or task stays; `test_small_engine` has more clients."""
    server = psutil.Process(tiny_server.process.pid)
    before = held(tiny_server.url, server)
    assert_nothing_stays(tiny_server.url, switch, LEAVERS)
    after = held(tiny_server.url, server)
    for name in ("processes", "tasks"):
        assert after[name] == before[name]


def at_the_mean(client: openai.OpenAI) -> dict[str, Any]:
    """Switching at the mean entropy, so that tiny models take turns."""
    bits = account(chat(client, NEVER, max_tokens=60).choices[0])["mean"]["entropy_bits"]
    return {**NEVER, "threshold": bits}


def assert_nothing_stays(url: str, switch: dict[str, Any], leavers: int) -> None:
    """Aborted at random instants: no request, no KV block, no answer stays on either engine."""
    changes = Changes(lambda: scraped(url))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda seed: leave(url, switch, random.Random(seed)), range(leavers)))
    deadline = time.monotonic() + GRACE_S
    while any((left := gauges(url)).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(left) == 6
    assert set(left.values()) == {0.0}
    # A server that had rejected them would have nothing left either.
    aborted = changes.of("requests_total", method="entropy_switch", outcome="aborted")
    assert aborted > leavers / 2


def leave(url: str, switch: dict[str, Any], rng: random.Random) -> None:
    """Requests a long answer that moves often, and hangs up."""
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
    """What both engines report about their load."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    ours = ("divserve_engine_requests", "divserve_engine_kv_cache_usage")
    starts = tuple(f"{name}{{" for name in (*names, *ours))
    lines = get(url, "/metrics").splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(starts)}
