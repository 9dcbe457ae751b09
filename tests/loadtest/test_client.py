"""The client against a server that can be told to misbehave."""

from __future__ import annotations

import subprocess
import sys

import pytest

from loadtest.client import Client
from loadtest.mix import body
from tests.support import fake_openai
from tests.support.fake_openai import STEP_S, TOKENS
from tests.support.models import ROOT

CAD = body("fake", "cad", ("Document.", "Who?"), 9, 0.5, False)


def test_an_answer_is_timed_token_by_token() -> None:
    with fake_openai.serving() as (url, _):
        client = Client(url, 10)
        assert client.model() == "fake"
        sample = client.ask("cad", CAD)
    assert (sample.outcome, sample.error) == ("ok", "")
    assert (sample.tokens, sample.prompt_tokens) == (TOKENS, 9)
    assert sample.ttft is not None
    assert sample.ttft >= STEP_S * 0.9
    assert sample.tpot is not None
    assert sample.tpot >= STEP_S * 0.9
    assert sample.took >= sample.chunks[-1][0]


@pytest.mark.parametrize(
    ("fault", "outcome", "error"),
    [
        ("500", "failed", "HTTP 500: it broke"),
        ("429", "rejected", ""),
        ("429 bare", "failed", "429 without Retry-After"),
        ("cut", "failed", "cut off"),
        ("event", "failed", "error event: lockstep_lost"),
        ("steps", "failed", "applied_steps is not the number of tokens"),
    ],
)
def test_faults(fault: str, outcome: str, error: str) -> None:
    with fake_openai.serving(lambda number, body: fault) as (url, _):
        sample = Client(url, 10).ask("cad", CAD)
    assert (sample.outcome, sample.error) == (outcome, error)
    assert sample.retry_after == (0.05 if outcome == "rejected" else None)


def test_no_server_is_a_failure_not_a_crash() -> None:
    with fake_openai.serving() as (url, _):
        pass
    sample = Client(url, 10).ask("cad", CAD)
    assert sample.outcome == "failed"
    assert sample.error.startswith("connection: ")


def test_nothing_but_the_locustfile_imports_locust() -> None:
    """It patches sockets and threads of the process that imports it."""
    names = {path.stem for path in (ROOT / "loadtest").glob("*.py")}
    assert "locustfile" in names
    imports = ", ".join(f"loadtest.{name}" for name in names - {"locustfile"})
    code = f"import sys, {imports}; print(sorted({{'gevent', 'locust'}} & sys.modules.keys()))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
