"""SIGTERM under 100 streams, without an engine; `tests.e2e.test_drain` has one."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.fake_server import served

STREAMS = 100
TOKENS = 100
LEAVES_WITHIN_S = 15
READY_TURNS_WITHIN_S = 1.0


async def stream(http: httpx2.AsyncClient, tokens: int, begun: asyncio.Semaphore) -> list[str]:
    """The events of a streamed answer."""
    body = {"model": "smol", "prompt": "Hi", "max_tokens": tokens, "stream": True}
    events: list[str] = []
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not events:
                begun.release()
            events.append(line.removeprefix("data: "))
    return [event for event in events if event]


async def streaming(http: httpx2.AsyncClient, tokens: int, count: int) -> list[Any]:
    """Yields so many streams once all have begun."""
    begun = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(stream(http, tokens, begun)) for _ in range(count)]
    for _ in range(count):
        await begun.acquire()
    return tasks


def client(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(base_url=url, timeout=60, limits=limits)


def test_no_stream_is_truncated(tmp_path: Path) -> None:
    async def test(url: str, process: subprocess.Popen[bytes]) -> None:
        async with client(url) as http:
            tasks = await streaming(http, TOKENS, STREAMS)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            while (ready := await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            assert time.monotonic() - start < READY_TURNS_WITHIN_S
            assert ready.json() == {"status": "draining"}
            refused = await http.post("/v1/chat/completions", json={})
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert refused.json()["error"]["code"] == "shutting_down"
            assert not all(task.done() for task in tasks)
            for events in await asyncio.gather(*tasks):
                assert events[-1] == "[DONE]"
                assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
                assert len(events) == TOKENS + 1

    with served(tmp_path / "log.txt", drain_timeout=120) as (url, process):
        asyncio.run(test(url, process))
        assert process.wait(LEAVES_WITHIN_S) == 0


@pytest.mark.parametrize("how", ["time is up", "second signal"])
def test_the_rest_ends_with_an_error_event(tmp_path: Path, how: str) -> None:
    async def test(url: str, process: subprocess.Popen[bytes]) -> None:
        async with client(url) as http:
            tasks = await streaming(http, 6000, 20)
            body = {"model": "smol", "prompt": "Hi", "max_tokens": 6000}
            whole = asyncio.create_task(http.post("/v1/completions", json=body))
            process.send_signal(signal.SIGTERM)
            if how == "second signal":
                await asyncio.sleep(0.3)
                process.send_signal(signal.SIGINT)
            for events in await asyncio.gather(*tasks):
                (error,) = (json.loads(e)["error"] for e in events if e.startswith('{"error"'))
                assert error["code"] == "shutting_down"
            assert (await whole).status_code == 503

    timeout = 1 if how == "time is up" else 60
    with served(tmp_path / "log.txt", drain_timeout=timeout) as (url, process):
        start = time.monotonic()
        asyncio.run(test(url, process))
        assert process.wait(LEAVES_WITHIN_S) == 0
        assert time.monotonic() - start < LEAVES_WITHIN_S


def test_an_idle_server_leaves_at_once(tmp_path: Path) -> None:
    with served(tmp_path / "log.txt") as (url, process):
        assert httpx2.get(f"{url}/live").status_code == 200
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(LEAVES_WITHIN_S) == 0
        assert time.monotonic() - start < 5
