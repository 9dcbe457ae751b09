"""A server whose clients leave, that is overloaded, and whose engine finally hangs."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.support.held import GRACE_S, held
from tests.support.losses import DECODINGS, assert_all_are_told
from tests.support.server import API_KEY, GAUGES, serving

ABORTS, SOAK_ABORTS, WARM_UP = 2_000, 10_000, 500
AT_ONCE = 12
LONGEST_VISIT_S = 0.3
GROWTH = 1.02
ROWS, QUEUE = 8, 48
KNOCKS = 30
KEY = {"Authorization": f"Bearer {API_KEY}"}
ENGINE_TIMEOUT_S = 8
"""Longer than the engine waits for a core on a machine that also runs other tests."""

pytestmark = pytest.mark.long

log = logging.getLogger(__name__)
# Some import in the suite sets the root logger to ERROR, and `make soak` shows these figures.
log.setLevel(logging.INFO)


@pytest.fixture(scope="module")
def started(
    tiny_with_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    flags = ["--max-num-seqs", str(ROWS), "--max-queue", str(QUEUE)]
    flags += ["--engine-timeout", str(ENGINE_TIMEOUT_S)]
    log = tmp_path_factory.mktemp("chaos") / "log.txt"
    with serving(tiny_with_tokenizer, log, flags, "tests.support.watched_server") as server:
        yield server


@pytest.fixture
def running(started: tuple[str, subprocess.Popen[bytes]]) -> tuple[str, psutil.Process]:
    return started[0], psutil.Process(started[1].pid)


async def abort(url: str, rng: random.Random, statuses: Counter[str]) -> None:
    """Leaves, with or without a clean close, at a random instant of the request or its stream."""
    host, port = url.removeprefix("http://").split(":")
    body = {
        "prompt": "Document. " * rng.randrange(1, 40) + "Tell a story.",
        "decoding": rng.choice(DECODINGS),
        "stream": True,
        "temperature": rng.choice([0, 1]),
        "max_tokens": 300,
        "ignore_eos": True,
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + data)
    waits_for_status = rng.random() < 0.5
    visit_s = rng.random() * LONGEST_VISIT_S
    try:
        async with asyncio.timeout(GRACE_S if waits_for_status else visit_s) as limit:
            statuses[(await reader.readline()).split()[1].decode()] += 1
            if waits_for_status:
                limit.reschedule(asyncio.get_running_loop().time() + visit_s)
            while await reader.read(65536):
                pass
            statuses["finished"] += 1
    except TimeoutError:
        statuses["left"] += 1
    if rng.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()
        await writer.wait_closed()


async def abort_many(url: str, count: int, seed: int) -> Counter[str]:
    statuses: Counter[str] = Counter()
    seeds = iter(range(count))

    async def visitor() -> None:
        for number in seeds:
            await abort(url, random.Random(seed + number), statuses)
            if number % 500 == 499:
                log.info("%d aborted: %s", number + 1, dict(statuses))

    await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
    return statuses


def test_nothing_is_left_of_aborted_streams(
    running: tuple[str, psutil.Process], soak: bool
) -> None:
    """No request, KV block, file, task or memory, after a round that fills caches and pools."""
    asyncio.run(abort_many(running[0], WARM_UP, seed=1_000_000))
    before = held(*running)
    count = SOAK_ABORTS if soak else ABORTS
    statuses = asyncio.run(abort_many(running[0], count, seed=0))
    after = held(*running)
    log.info("%s\nbefore %s\nafter %s", dict(statuses), before, after)
    # On a machine of any speed, half of them stay until they get a status, and nearly all are
    # admitted.
    assert statuses["200"] > 0.95 * (statuses["200"] + statuses["429"]) > 0.4 * count
    assert statuses["left"] > 0.8 * count
    assert [after.pop(name) for name in GAUGES] == [0.0] * len(GAUGES)
    memory = after.pop("memory") / before.pop("memory")
    assert memory < GROWTH
    assert after == {name: before[name] for name in after}


def test_ten_times_more_than_fits(running: tuple[str, psutil.Process]) -> None:
    """The queue is kept, the rest is rejected at once, and admitted requests get right answers."""
    url, fits = running[0], ROWS + QUEUE
    body = {"model": "smol", "max_tokens": 40, "temperature": 0, "ignore_eos": True}

    async def ask(http: httpx2.AsyncClient, number: int) -> tuple[float, Any]:
        start = time.perf_counter()
        answer = await http.post("/v1/completions", json={**body, "prompt": f"Story {number % 8}"})
        return time.perf_counter() - start, answer

    async def knocked(http: httpx2.AsyncClient) -> list[tuple[float, Any]]:
        """Times rejections one by one, while long answers fill the engine and the queue."""
        long = {**body, "prompt": "Story", "max_tokens": 900}
        holders = [
            asyncio.create_task(http.post("/v1/completions", json=long)) for _ in range(2 * fits)
        ]
        await asyncio.wait(holders, return_when=asyncio.FIRST_COMPLETED)
        found = [await ask(http, n) for n in range(KNOCKS)]
        for holder in holders:
            holder.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        return found

    async def overrun() -> tuple[list[str], list[Any], list[Any]]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        options: Any = {"base_url": url, "headers": KEY, "timeout": 120, "limits": limits}
        async with httpx2.AsyncClient(**options) as http:
            alone = [(await ask(http, n))[1].json()["choices"][0]["text"] for n in range(8)]
            answers = await asyncio.gather(*(ask(http, n) for n in range(10 * fits)))
            return alone, answers, await knocked(http)

    alone, answers, knocks = asyncio.run(overrun())
    assert {answer.status_code for _, answer in knocks} == {429}
    refused = [(seconds, answer) for seconds, answer in answers if answer.status_code == 429]
    accepted = [(n, seconds, a) for n, (seconds, a) in enumerate(answers) if a.status_code == 200]
    assert len(refused) + len(accepted) == len(answers)
    for number, _, answer in accepted:
        assert answer.json()["choices"][0]["text"] == alone[number % 8]
        assert answer.json()["usage"]["completion_tokens"] == 40
    for _, answer in refused:
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "queue_full"
    quick = statistics.median(seconds for seconds, _ in knocks)
    slow = statistics.median(seconds for _, seconds, _ in accepted)
    log.info(
        "%d refused; %d alone, median %.1f ms, longest %.1f ms; %d accepted, median %.0f ms",
        len(refused),
        len(knocks),
        1000 * quick,
        1000 * max(seconds for seconds, _ in knocks),
        len(accepted),
        1000 * slow,
    )
    assert len(refused) > fits
    assert quick < slow / 5


def test_the_engine_hangs(started: tuple[str, subprocess.Popen[bytes]]) -> None:
    """A stopped process exists but does nothing, not even on SIGTERM. Runs last."""
    url, process = started
    assert_all_are_told(url, process, signal.SIGSTOP, within_s=ENGINE_TIMEOUT_S + 5)
