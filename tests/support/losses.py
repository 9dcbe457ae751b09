"""Requests of all kinds to a server that is about to lose its engine."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import httpx2
import psutil

from tests.support.held import tree
from tests.support.server import API_KEY

GUIDE = {"guide": {"without": "Document. "}}
DECODINGS: list[Any] = [
    {"method": "cad", **GUIDE},
    {"method": "adacad", "trace": True, **GUIDE},
    {"method": "kl_temperature", **GUIDE},
    None,
]
BODY = {"prompt": "Document. x", "max_tokens": 900, "ignore_eos": True}
TIMEOUT_S = 60
ARRIVE_S = 0.2
GONE_WITHIN_S = 10
LEAVES_WITHIN_S = 60

log = logging.getLogger(__name__)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether the processes end within a short time: their parents may not wait for them."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def lose(
    url: str, strike: Callable[[], None], others_go_on: bool = False
) -> tuple[list[Any], float]:
    """Calls `strike` while a stream and a whole answer for each of `DECODINGS` are in progress.

    Args:
        url: the server's address.
        strike: hits an engine.
        others_go_on: whether other engines may finish answers before all are told.

    Returns:
        The errors of all others, and the seconds until the last one came.
    """
    headers = {"Authorization": f"Bearer {API_KEY}"}
    options: Any = {"base_url": url, "headers": headers, "timeout": TIMEOUT_S}
    async with httpx2.AsyncClient(**options) as http:
        begun = [asyncio.Event() for _ in DECODINGS]
        streams = [
            asyncio.create_task(_stream(http, decoding, event))
            for decoding, event in zip(DECODINGS, begun, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        # If the streams fill the engine, these wait in its queue.
        whole = [
            asyncio.create_task(http.post("/v1/completions", json={**BODY, "decoding": decoding}))
            for decoding in DECODINGS
        ]
        await asyncio.sleep(ARRIVE_S)
        start = time.monotonic()
        strike()
        ends = await asyncio.gather(*streams)
        ends += [answer.json() for answer in await asyncio.gather(*whole)]
        errors = [end["error"] for end in ends if "error" in end]
        whole_answers = [end["choices"][0]["finish_reason"] for end in ends if "error" not in end]
        assert whole_answers == ["length"] * len(whole_answers)
        assert others_go_on or not whole_answers
        took = time.monotonic() - start
        for path in ("/ready", "/health"):
            assert await _turned_away(http.get(path))
        assert await _turned_away(http.post("/v1/completions", json=BODY))
        return errors, took


async def _turned_away(request: Awaitable[Any]) -> bool:
    """Whether a request gets a 503, or no connection: vLLM's watchdog may be quick."""
    try:
        answer = await request
    except httpx2.TransportError:
        return True
    return bool(answer.status_code == 503)


async def _stream(http: httpx2.AsyncClient, decoding: Any, begun: asyncio.Event) -> Any:
    """The last event of a stream: an error, or the last token."""
    body = {**BODY, "decoding": decoding, "stream": True}
    events: list[str] = []
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            events += [line.removeprefix("data: ")] if line else []
            begun.set()
    # vLLM ends a plain stream with [DONE] even after an error.
    return json.loads([event for event in events if event != "[DONE]"][-1])


def assert_all_are_told(
    url: str,
    process: subprocess.Popen[bytes],
    signalled: signal.Signals,
    within_s: float,
    rank: int | None = None,
) -> None:
    """Every client gets an error, new requests are sent elsewhere, and the exit code is a
    failure.

    Args:
        url: the server's address.
        process: the server's.
        signalled: what the engine's process gets.
        within_s: how soon all are told.
        rank: the engine's, if it is one of several.
    """
    name = "EngineCore" if rank is None else f"EngineCore_DP{rank}"
    processes = tree(psutil.Process(process.pid))
    (engine,) = (p for p in processes if name in p.cmdline()[0])
    strike = partial(engine.send_signal, signalled)
    errors, took = asyncio.run(lose(url, strike, others_go_on=rank is not None))
    start = time.monotonic()
    code = process.wait(LEAVES_WITHIN_S)
    log.info("told after %.1f s, left %.1f s later", took, time.monotonic() - start)
    assert code == 1
    assert took < within_s
    assert {error["code"] for error in errors} == {"engine_unavailable"}
    assert {error["type"] for error in errors} == {"service_unavailable_error"}
    assert all(error.keys() == {"message", "type", "param", "code"} for error in errors)
    assert gone(processes)
