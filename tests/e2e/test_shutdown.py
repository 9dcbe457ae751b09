"""SIGTERM with live streams: the server leaves at once, or lets them finish when told to wait.

vLLM's flag for the latter is --shutdown-timeout, ours --drain-timeout.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.chat import guided
from tests.support.server import API_KEY, serving

LEAVES_WITHIN_S = 20


@pytest.fixture(
    params=[("--drain-timeout", "0"), ("--shutdown-timeout", "60")], ids=["at once", "drain"]
)
def running(
    request: pytest.FixtureRequest, tiny_with_tokenizer: Path, tmp_path: Path
) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """(timeout, address, process) of a server of its own."""
    with serving(tiny_with_tokenizer, tmp_path / "log.txt", request.param) as (url, process):
        yield request.param[1], url, process


def test_sigterm_ends_live_streams(running: tuple[str, str, subprocess.Popen[bytes]]) -> None:
    """Stock vLLM waits until the clients leave. Plain and guided streams alike."""
    timeout, url, process = running
    tokens = 900 if timeout == "0" else 150
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        streams = [
            client.completions.create(
                model="smol",
                prompt="Document. Tell a story.",
                max_tokens=tokens,
                stream=True,
                extra_body={"ignore_eos": True} | body,
            )
            for body in ({}, {"decoding": guided() | {"guide": {"without": "Document. "}}})
        ]
        for stream in streams:
            next(iter(stream))
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        finished = [_ends(stream) for stream in streams]
        assert process.wait(LEAVES_WITHIN_S) == 0
    assert time.monotonic() - start < LEAVES_WITHIN_S
    assert set(finished) == ({"error"} if timeout == "0" else {"length"})


def _ends(stream: openai.Stream[openai.types.Completion]) -> str | None:
    """How the stream ends: its finish reason, or "error" for an error event."""
    reasons: list[str | None] = [None]
    try:
        reasons += [choice.finish_reason for chunk in stream for choice in chunk.choices]
    except openai.APIError:
        return "error"
    return reasons[-1]
