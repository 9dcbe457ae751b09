"""SIGTERM under load: requests in progress are finished, new ones are sent elsewhere."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.chat import guided
from tests.support.otlp import Collector
from tests.support.server import API_KEY, TOGETHER, Started, serving

STREAMS = 48
TOKENS = 120
LEAVES_WITHIN_S = 60
"""Two engines have to shut down, on a machine that may be busy."""
KEY = {"Authorization": f"Bearer {API_KEY}"}

PLAIN: dict[str, Any] = {}
GUIDED = {"decoding": guided() | {"guide": {"without": "Document. "}}}
SWITCH = {"decoding": {"method": "entropy_switch", "threshold": 15.0, "window": 1, "min_run": 1}}


class Stream:
    """One answer, as it arrives."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        tokens: int,
        extra: dict[str, Any],
        headers: dict[str, str] | None = None,
    ) -> None:
        self.begun = asyncio.Event()
        self.tokens = 0
        self.end = ""
        self.task = asyncio.create_task(self._read(client, tokens, extra, headers or {}))

    async def _read(
        self,
        client: openai.AsyncOpenAI,
        tokens: int,
        extra: dict[str, Any],
        headers: dict[str, str],
    ) -> None:
        try:
            chunks: Any = await client.completions.create(
                model="smol",
                prompt="Document. Tell a story.",
                max_tokens=tokens,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True} | extra,
                extra_headers=headers,
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


async def not_ready(http: httpx2.AsyncClient) -> None:
    """Waits until /ready is no longer 200; the answers in progress take longer than that."""
    while (await http.get("/ready")).status_code == 200:
        await asyncio.sleep(0.01)


def test_no_stream_is_truncated(tiny_server: Started, collector: Collector) -> None:
    """Plain, guided and switching answers, some of them still waiting for a row; ends the server.

    Their spans are sent too: exporters send every five seconds, and the server ends sooner.
    """
    url, process = tiny_server.url, tiny_server.process
    trace = secrets.token_hex(16)
    traced = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}

    async def test() -> None:
        async with client_of(url) as client, httpx2.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/ready")).json() == {"status": "ready"}
            last = Stream(client, TOKENS, GUIDED, traced)
            under_way = [last, *await streams(client, TOKENS, STREAMS, [PLAIN, GUIDED, SWITCH])]
            process.send_signal(signal.SIGTERM)
            await not_ready(http)
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
        assert [stream.end for stream in under_way] == ["length"] * (STREAMS + 1)
        assert [stream.tokens for stream in under_way] == [TOKENS] * (STREAMS + 1)

    asyncio.run(test())
    assert process.wait(LEAVES_WITHIN_S) == 0
    # One of each: the guide's row is not a separate request.
    assert collector.count(trace) == {"divserve.request": 1, "llm_request": 1}
    assert "Traceback" not in tiny_server.log.read_text()


@pytest.mark.long
@pytest.mark.parametrize("how", ["time is up", "second signal", "no time"])
def test_the_rest_ends_with_an_error_event(
    tiny_models: dict[str, Path], tmp_path: Path, how: str
) -> None:
    """`tests.api.test_edges_drain` tests it without an engine."""

    async def test(url: str, process: subprocess.Popen[bytes]) -> None:
        async with client_of(url) as client:
            under_way = await streams(client, 900, 12, [PLAIN, GUIDED, SWITCH])
            process.send_signal(signal.SIGTERM)
            if how == "second signal":
                await asyncio.sleep(0.2)
                process.send_signal(signal.SIGTERM)
            await asyncio.gather(*(stream.task for stream in under_way))
        assert [stream.end for stream in under_way] == ["shutting_down"] * 12

    timeout = {"time is up": "0.5", "second signal": "90", "no time": "0"}[how]
    flags = ["--small", str(tiny_models["small"]), "--max-num-seqs", "32"]
    flags += ["--drain-timeout", timeout]
    serve = serving(tiny_models["large"], tmp_path / "log.txt", flags, environment=TOGETHER)
    with serve as (url, process):
        asyncio.run(test(url, process))
        assert process.wait(LEAVES_WITHIN_S) == 0
