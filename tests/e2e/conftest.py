"""One real server for all end-to-end tests, and the openai client that talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.server import API_KEY, serving

FLAGS = ("--max-logprobs", "-1", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@pytest.fixture(scope="session")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of SmolLM2 that runs until the tests end."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(smollm2, log, FLAGS) as (url, _):
        yield url


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[openai.OpenAI]:
    """The openai client, without retries so that an error is seen as it is."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client
