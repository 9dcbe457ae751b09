"""A small engine beside the large one: many clients leave it, and finally it hangs."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.test_two_models import assert_nothing_stays, at_the_mean
from tests.support.chat import MESSAGES, account, chat, complete
from tests.support.server import API_KEY, TOGETHER, serving

LEAVERS = 500
ENGINE_TIMEOUT_S = 8
"""Longer than an engine waits for a core on a machine that also runs other tests."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def started(
    tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """Address of the server, and its process id."""
    log = tmp_path_factory.mktemp("two") / "log.txt"
    flags = ["--small", str(tiny_models["small"]), "--max-num-seqs", "32"]
    flags += ["--engine-timeout", str(ENGINE_TIMEOUT_S)]
    with serving(tiny_models["large"], log, flags, environment=TOGETHER) as (url, process):
        yield url, process.pid


@pytest.fixture(scope="module")
def client(started: tuple[str, int]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{started[0]}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def switch(client: openai.OpenAI) -> dict[str, Any]:
    """Parameters with which these models switch often."""
    return at_the_mean(client)


def test_500_clients_that_leave_in_the_middle(
    started: tuple[str, int], switch: dict[str, Any]
) -> None:
    assert_nothing_stays(started[0], switch, LEAVERS)


def test_it_hangs(started: tuple[str, int], client: openai.OpenAI, switch: dict[str, Any]) -> None:
    """Answers continue with the large model, new ones work, /health reports it. Runs last.

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
    """The process id of the small engine, which the server starts first."""
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
