"""SIGTERM under load: what is under way is finished, what is new is sent elsewhere."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.chat import guided
from tests.support.models import make_tiny
from tests.support.server import API_KEY, serving

STREAMS = 48
TOKENS = 120
READY_TURNS_WITHIN_S = 1.0
LEAVES_WITHIN_S = 60
"""Two engines have to be taken down, on a machine that may be busy."""
KEY = {"Authorization": f"Bearer {API_KEY}"}

PLAIN: dict[str, Any] = {}
GUIDED = {"decoding": guided() | {"guide": {"without": "Document. "}}}
SWITCH = {"decoding": {"method": "entropy_switch", "threshold": 15.0, "window": 1, "min_run": 1}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("drain")
    large, small = (
        make_tiny(folder / name, vocab_size=49_152, seed=seed)
        for seed, name in enumerate(["large", "small"])
    )
    return large, small


@contextmanager
def running(
    models: tuple[Path, Path], log: Path, *flags: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    large, small = map(str, models)
    more = ["--small", small, "--max-num-seqs", "32", *flags]
    with serving(Path(large), log, more) as started:
        yield started


class Stream:
    """One answer, as it comes."""

    def __init__(self, client: openai.AsyncOpenAI, tokens: int, extra: dict[str, Any]) -> None:
        self.begun = asyncio.Event()
        self.tokens = 0
        self.end = ""
        self.task = asyncio.create_task(self._read(client, tokens, extra))

    async def _read(self, client: openai.AsyncOpenAI, tokens: int, extra: dict[str, Any]) -> None:
        try:
            chunks: Any = await client.completions.create(
                model="smol",
                prompt="Document. Tell a story.",
                max_tokens=tokens,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True} | extra,
            )
            async for chunk in chunks:
                self.begun.set()
                if chunk.usage:
                    self.tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    self.end = choice.finish_reason or self.end
        except openai.APIError as error:
            self.end = str(error.code)
        finally:
            self.begun.set()


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0)


async def streams(
    client: openai.AsyncOpenAI, tokens: int, count: int, kinds: Sequence[Any]
) -> list[Stream]:
    """Streams that have all begun."""
    begun = [Stream(client, tokens, kinds[i % len(kinds)]) for i in range(count)]
    await asyncio.gather(*(stream.begun.wait() for stream in begun))
    return begun


async def not_ready_after(http: httpx2.AsyncClient) -> float:
    """Seconds until /ready says no."""
    start = time.monotonic()
    while (await http.get("/ready")).status_code == 200:
        await asyncio.sleep(0.01)
    return time.monotonic() - start


def test_no_stream_is_truncated(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Plain, guided and switching answers, some of them still waiting for a row."""

    async def test(url: str, process: subprocess.Popen[bytes]) -> None:
        async with client_of(url) as client, httpx2.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/ready")).json() == {"status": "ready"}
            under_way = await streams(client, TOKENS, STREAMS, [PLAIN, GUIDED, SWITCH])
            process.send_signal(signal.SIGTERM)
            assert await not_ready_after(http) < READY_TURNS_WITHIN_S
            assert (await http.get("/ready")).json() == {"status": "draining"}
            for path in ("/v1/completions", "/v1/chat/completions"):
                refused = await http.post(path, json={"prompt": "x"}, headers=KEY)
                assert refused.status_code == 503
                assert refused.headers["retry-after"] == "5"
                assert refused.json()["error"]["code"] == "shutting_down"
            assert (await http.get("/live")).status_code == 200
            assert (await http.get("/health")).status_code == 200
            assert any(not stream.task.done() for stream in under_way)
            await asyncio.gather(*(stream.task for stream in under_way))
        assert [stream.end for stream in under_way] == ["length"] * STREAMS
        assert [stream.tokens for stream in under_way] == [TOKENS] * STREAMS

    with running(models, tmp_path / "log.txt", "--drain-timeout", "90") as (url, process):
        asyncio.run(test(url, process))
        assert process.wait(LEAVES_WITHIN_S) == 0


@pytest.mark.parametrize("how", ["time is up", "second signal"])
def test_the_rest_ends_with_an_error_event(
    models: tuple[Path, Path], tmp_path: Path, how: str
) -> None:
    async def test(url: str, process: subprocess.Popen[bytes]) -> None:
        async with client_of(url) as client:
            under_way = await streams(client, 900, 12, [PLAIN, GUIDED, SWITCH])
            process.send_signal(signal.SIGTERM)
            if how == "second signal":
                await asyncio.sleep(0.2)
                process.send_signal(signal.SIGTERM)
            await asyncio.gather(*(stream.task for stream in under_way))
        assert [stream.end for stream in under_way] == ["shutting_down"] * 12

    timeout = "0.5" if how == "time is up" else "90"
    with running(models, tmp_path / "log.txt", "--drain-timeout", timeout) as (url, process):
        asyncio.run(test(url, process))
        assert process.wait(LEAVES_WITHIN_S) == 0
