"""A server that streams as divserve does, without a model; it can be told to misbehave."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

TOKENS = 6
STEP_S = 0.01
SILENCE_S = 20
Plan = Callable[[int, dict[str, Any]], str]
"""Chooses, from its body, how to answer the n-th request: ``ok`` or a fault of `FakeServer`."""


def well(number: int, body: dict[str, Any]) -> str:
    return "ok"


class FakeServer:
    """The ASGI app. Faults: ``500 429 cut event steps hang``, and ``429 bare`` without a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bodies: list[dict[str, Any]] = []
        self._numbers = itertools.count()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/models":
            await _respond(send, 200, {"data": [{"id": "fake"}]})
            return
        if scope["path"] != "/v1/chat/completions":
            await _respond(send, 404, {"error": {"message": "no such route"}})
            return
        raw = b""
        more = True
        while more:
            message = await receive()
            raw += message.get("body", b"")
            more = message.get("more_body", False)
        body = json.loads(raw)
        self.bodies.append(body)
        fault = self.plan(next(self._numbers), body)
        if fault == "500":
            await _respond(send, 500, {"error": {"message": "it broke"}})
        elif fault.startswith("429"):
            headers = [(b"retry-after", b"0.05")] if fault == "429" else []
            await _respond(send, 429, {"error": {"message": "too busy"}}, headers)
        else:
            await _stream(send, body, fault)


async def _respond(send: Any, status: int, answer: Any, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def _stream(send: Any, body: dict[str, Any], fault: str) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(data: str) -> None:
        body = f"data: {data}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    for n in range(TOKENS + 1):
        choice: dict[str, Any] = {"index": 0, "delta": {"content": "a" if n else ""}}
        if n == TOKENS:
            choice["finish_reason"] = "stop"
            if asked := body.get("decoding"):
                methods = asked if isinstance(asked, list) else [asked]
                name = "+".join(method["method"] for method in methods)
                steps = TOKENS - (fault == "steps")
                choice["decoding"] = {"method": name, "applied_steps": steps}
        usage = {"prompt_tokens": 9, "completion_tokens": n}
        await event(json.dumps({"choices": [choice], "usage": usage}))
        await asyncio.sleep(STEP_S)
        if n == 3 and fault == "hang":
            await asyncio.sleep(SILENCE_S)
        if n == 3 and fault == "event":
            await event(json.dumps({"error": {"code": "lockstep_lost", "message": "lost"}}))
        if n == 3 and fault in ("event", "cut"):
            break
    else:
        await event("[DONE]")
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def serving(plan: Plan = well) -> Iterator[tuple[str, FakeServer]]:
    """Runs the server in a thread of this process; yields its address and itself."""
    app = FakeServer(plan)
    with running(app) as url:
        yield url, app


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Runs an ASGI app in a thread of this process; yields its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started and time.monotonic() < deadline:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
