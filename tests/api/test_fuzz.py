"""Bytes that no client library would send, to the real app and launcher on a real socket."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from divserve.edges.flags import EdgeSettings
from tests.support.fake_client import MAX_ROWS
from tests.support.fake_server import served

GOOD = b'{"model":"smol","prompt":"Hi","max_tokens":3'
JSON = b"Content-Type: application/json\r\n"
MEGABYTE = 1024 * 1024
ANSWERS_WITHIN_S = 30
SLOW_CLIENTS = 50
MOST_PROBES = 3000
"""How many idle probes may take as long as the slowest one beside a hostile body: a third of them
have been seen. 4 MiB of messages took 5,000, and 15 MiB 100,000."""
ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/tokenize")


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with served(tmp_path_factory.mktemp("fuzz") / "log.txt") as started:
        yield started


@pytest.fixture
def url(running: tuple[str, subprocess.Popen[bytes]]) -> Iterator[str]:
    """The address; afterwards the server must still live and answer."""
    yield running[0]
    assert running[1].poll() is None
    body = {"model": "smol", "prompt": "Hi", "max_tokens": 3}
    answer = httpx2.post(f"{running[0]}/v1/completions", json=body)
    assert answer.json()["usage"]["completion_tokens"] == 3


async def exchange(url: str, data: bytes, *, closes: bool = False) -> tuple[int, bytes]:
    """Status and body of what comes back for these bytes; 0 if nothing does."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    if closes:
        writer.write_eof()
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await (reader.readexactly(int(length[1])) if length else reader.read())
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""
    finally:
        await close(writer)
    return int(head.split()[1]), body


async def close(writer: asyncio.StreamWriter) -> None:
    """Also waits: a transport that outlives its loop causes a warning in a later test."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def post(path: str, body: bytes, headers: bytes = JSON) -> bytes:
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + headers + length + body


def error_of(body: bytes) -> Any:
    error = json.loads(body)["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert isinstance(error["code"], str)
    return error


REFUSED = {
    "null bytes": GOOD + b"\0\0}",
    "only null bytes": b"\0" * 100,
    "not UTF-8": GOOD + b',"user":"\xff\xfe"}',
    "deep": GOOD + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and unfinished": b'{"a":' * 100_000,
    "a huge integer": GOOD[:-1] + b"9" * 1_000 + b"}",
    "an integer of 10,000 digits": GOOD[:-1] + b"9" * 10_000 + b"}",
    "a huge float": GOOD + b',"temperature":1e999}',
    "NaN": GOOD + b',"temperature":NaN}',
    "Infinity": GOOD + b',"top_p":Infinity}',
    "minus infinity": GOOD + b',"decoding":{"method":"cad","alpha":-Infinity}}',
    "4 MB of spaces": b" " * 4 * MEGABYTE,
    "4 MB of brackets": b"[" * 4 * MEGABYTE,
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_400(url: str, name: str) -> None:
    for path in ROUTES[:2]:
        status, body = asyncio.run(exchange(url, post(path, REFUSED[name])))
        assert (status, error_of(body)["type"]) == (400, "invalid_request_error"), (path, body)


DEFINED = {
    "lone surrogates": (GOOD + b',"user":"\\ud800"}', {400}),
    "lone surrogates in the model's name": (GOOD + b',"model":"\\ud800"}', {400}),
    "lone surrogates in the prompt": (GOOD.replace(b"Hi", b"\\udfff Hi \\ud800"), {400}),
    "an escaped null": (GOOD.replace(b"Hi", b"\\u0000") + b"}", {200}),
    "the last of duplicate keys": (GOOD + b',"max_tokens":4,"max_tokens":3}', {200}),
    "a duplicate method": (GOOD + b',"decoding":{"method":"cad","method":"nope"}}', {400}),
    "3 MB of prompt": (GOOD.replace(b"Hi", b"a" * 3 * MEGABYTE) + b"}", {400}),
    "10 MB": (GOOD.replace(b"Hi", b"a" * 10 * MEGABYTE) + b"}", {413}),
}


@pytest.mark.parametrize("name", DEFINED)
def test_defined(url: str, name: str) -> None:
    sent, expected = DEFINED[name]
    status, body = asyncio.run(exchange(url, post("/v1/completions", sent)))
    assert status in expected, body[:500]
    if status != 200:
        error_of(body)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "\x01\x02", ""])
def test_other_content_types(url: str, path: str, kind: str) -> None:
    header = f"Content-Type: {kind}\r\n".encode() if kind else b""
    status, body = asyncio.run(exchange(url, post(path, GOOD + b"}", header)))
    # httptools rejects control characters in a header before there is a request.
    assert status in ({400} if kind.startswith("\x01") else {400, 415}), body
    assert kind.startswith("\x01") or error_of(body)["code"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 1000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_not_http(url: str, sent: bytes) -> None:
    answer = asyncio.run(exchange(url, sent, closes=True))
    assert answer == (400, b"Invalid HTTP request received.")


def test_clients_that_send_half_and_close_their_half(tmp_path: Path) -> None:
    """Half the headers or half the body: there is no answer, and no row of the queue stays in
    use."""
    whole = post("/v1/completions", GOOD + b"}")
    with served(tmp_path / "log.txt", max_queue=0) as (url, _):
        for _ in range(2 * MAX_ROWS):
            for cut in (10, len(whole) - len(GOOD) - 10, len(whole) - 5):
                assert asyncio.run(exchange(url, whole[:cut], closes=True)) == (0, b"")
        assert asyncio.run(exchange(url, whole))[0] == 200


def many(item: str, count: int = 4 * MEGABYTE) -> str:
    """As many items as are allowed, or as fit into the largest body."""
    return ",".join([item] * min(count, (4 * MEGABYTE - 1000) // (len(item) + 1)))


def chat(messages: str, rest: str = "") -> bytes:
    return f'{{"model":"smol","messages":[{messages}]{rest}}}'.encode()


TEXT, CHAT, ANTHROPIC, RESPONSES, TOKENIZE = ROUTES
USER = '{"role":"user","content":"Hi"}'
TEXTS = json.dumps([" " * k + "x" for k in range(1, 65)])
SPACES = json.dumps({"role": "user", "content": " " * 200_000 + "x" * 65})
CAD = ',"max_tokens":2,"decoding":{"method":"cad","guide":%s}'
LIMITS = EdgeSettings()

HOSTILE = {
    "messages": (CHAT, chat(many(USER))),
    "as many empty messages as are allowed": (CHAT, chat(many("{}", LIMITS.max_messages))),
    "parts": (CHAT, chat(f'{{"role":"user","content":[{many("{}")}]}}')),
    "tools": (CHAT, chat(USER, f',"tools":[{many("{}")}]')),
    "tool calls": (CHAT, chat(f'{{"role":"assistant","tool_calls":[{many("{}")}]}}')),
    "messages of a guide": (CHAT, chat(USER, CAD % f'{{"messages":[{many("{}")}]}}')),
    "spaces before an x": (CHAT, chat(SPACES, CAD % f'{{"without":{TEXTS}}}')),
    "texts to leave out": (CHAT, chat(USER, CAD % f'{{"without":[{many("1")}]}}')),
    "token ids": (TEXT, f'{{"model":"smol","prompt":[{many("1")}]}}'.encode()),
    "no token ids": (TEXT, f'{{"model":"smol","prompt":[{many("1.5")}]}}'.encode()),
    "documents": (CHAT, chat(USER, f',"documents":[{many("1")}]')),
    "input": (RESPONSES, f'{{"model":"smol","input":[{many(USER)}]}}'.encode()),
    "as much empty input as is allowed": (
        RESPONSES,
        f'{{"model":"smol","input":[{many("{}", LIMITS.max_messages)}]}}'.encode(),
    ),
    "messages of Anthropic": (ANTHROPIC, chat(many(USER), ',"max_tokens":2')),
    "messages to count": (TOKENIZE, chat(many(USER))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_requests_are_answered_meanwhile(url: str, name: str) -> None:
    """The probe of an orchestrator waits no longer than a bounded number of idle ones."""
    path, body = HOSTILE[name]

    async def probe() -> float:
        start = time.perf_counter()
        assert (await exchange(url, b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        return time.perf_counter() - start

    async def test() -> None:
        idle = statistics.median([await probe() for _ in range(15)])
        answer = asyncio.create_task(exchange(url, post(path, body)))
        slowest = 0.0
        while not answer.done():
            slowest = max(slowest, await probe())
            await asyncio.sleep(idle)
        assert (await answer)[0] in (200, 400)
        assert slowest < MOST_PROBES * idle, (slowest, idle)

    asyncio.run(test())


def test_slow_clients_stop_nobody(url: str) -> None:
    """Fifty clients send a few bytes at a time; others are answered meanwhile, and so are they."""
    whole = post("/v1/completions", GOOD + b"}")

    async def drip() -> int:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for i in range(0, len(whole), 4):
            writer.write(whole[i : i + 4])
            await asyncio.sleep(0.05)
        status = int((await reader.readline()).split()[1])
        await close(writer)
        return status

    async def test() -> None:
        slow = [asyncio.create_task(drip()) for _ in range(SLOW_CLIENTS)]
        await asyncio.sleep(0.5)
        start = time.monotonic()
        status, _ = await exchange(url, whole)
        assert status == 200
        assert not any(task.done() for task in slow)
        assert time.monotonic() - start < ANSWERS_WITHIN_S
        assert await asyncio.gather(*slow) == [200] * SLOW_CLIENTS

    asyncio.run(test())
