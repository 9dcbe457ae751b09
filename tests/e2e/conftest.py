"""One real server for all end-to-end tests, and the openai client that talks to it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.engine import ENVIRONMENT
from tests.support.models import ROOT, SMOLLM2

API_KEY = "test-key"
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 30
FLAGS = [
    *("--served-model-name", "smol"),
    *("--api-key", API_KEY),
    *("--max-model-len", "1024"),
    *("--max-logprobs", "-1"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of SmolLM2 that runs until the tests end."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "divserve", "serve", str(SMOLLM2), "--port", str(port), *FLAGS]
    # As a user's shell: without what the in-process engines of other tests have set.
    environment = {
        k: v for k, v in os.environ.items() if k not in (*ENVIRONMENT, "OMP_NUM_THREADS")
    }
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[openai.OpenAI]:
    """The openai client, without retries so that an error is seen as it is."""
    with openai.OpenAI(base_url=f"{server}/v1", api_key=API_KEY, max_retries=0) as client:
        yield client


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
