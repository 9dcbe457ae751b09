"""Two real servers for the end-to-end tests, and the openai clients that talk to them.

`tests.support.sharing` assigns each server to one worker and runs the test that ends it last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.browser import browser, page, shots
from tests.support.models import make_tiny
from tests.support.otlp import Collector, collecting
from tests.support.server import API_KEY, TOGETHER, Started, serving

__all__ = ["browser", "page", "shots"]

FLAGS = ("--max-logprobs", "-1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
VOCABULARIES = {"large": 49_216, "small": 49_152, "amateur": 49_152, "tuned": 49_280}
"""Vocabularies of the tiny models: their tokenizer's 49,152 tokens, padded differently."""


@pytest.fixture(scope="session")
def smollm2_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server of SmolLM2, as a user starts it; `test_killed` ends it."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(smollm2, log, FLAGS) as (url, process):
        yield Started(url, process, log)


@pytest.fixture(scope="session")
def server(smollm2_server: Started) -> str:
    """The address of SmolLM2's server."""
    return smollm2_server.url


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[openai.OpenAI]:
    """The openai client, without retries so that errors are visible."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the tiny models' server sends its spans."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models of one tokenizer: an answer takes milliseconds."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: make_tiny(folder / name, vocab_size=size, seed=seed)
        for seed, (name, size) in enumerate(VOCABULARIES.items())
    }


@pytest.fixture(scope="session")
def tiny_server(
    tiny_models: dict[str, Path], collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """A server of tiny models with every extra beside the served one; `test_drain` ends it."""
    amateur, tuned, small = (str(tiny_models[name]) for name in ("amateur", "tuned", "small"))
    flags = ["--amateur", amateur, "--tuned", tuned, "--small", small, "--look-back"]
    flags += ["--max-num-seqs", "32", "--drain-timeout", "90"]
    flags += ["--otlp-traces-endpoint", collector.url]
    log = tmp_path_factory.mktemp("tiny-server") / "log.txt"
    module = "tests.support.watched_server"
    with serving(tiny_models["large"], log, flags, module, TOGETHER) as (url, process):
        yield Started(url, process, log)


@pytest.fixture(scope="session")
def tiny_client(tiny_server: Started) -> Iterator[openai.OpenAI]:
    """The openai client of the tiny models' server."""
    url = f"{tiny_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key=API_KEY, max_retries=0) as client:
        yield client
