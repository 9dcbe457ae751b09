"""A small application with batches, whose one route answers as it is told."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import openai
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.testclient import TestClient
from openai.types import Batch

from divserve.batches import routes
from divserve.batches.flags import BatchSettings
from divserve.batches.folder import prepare
from divserve.edges import stack
from divserve.edges.flags import EdgeSettings
from divserve.http import errors
from divserve.http.openai import with_cancellation
from divserve.http.scope import KEY_NAME, weigh

CHAT: Final = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
WAIT_S = 30.0
"""Only a hang takes so long."""


def line(custom_id: str, say: str = "", **more: Any) -> dict[str, Any]:
    """A line of an input file; the route is told what to do by `say`."""
    body = {"model": "smol", "messages": [{"role": "user", "content": say or custom_id}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {**body, **more}}


def jsonl(*lines: Any) -> bytes:
    """The content of a file of these lines."""
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


class Route:
    """The chat route: what it was asked, and how it answers.

    What a message says decides: ``wait`` waits for `gate`, ``busy`` is a 429 the first time,
    ``down`` a 503 and ``bad`` a 400 each time, ``break`` raises, ``rows 3`` takes three rows,
    ``text`` answers with one.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked: list[str] = []
        self.clients: list[str | None] = []
        self.bodies: list[dict[str, Any]] = []
        self.running = 0
        self.waiting = 0
        """Requests that wait for the gate."""
        self.most = 0
        """Rows that it has ever run at the same time."""
        self.aborted = 0

    async def answer(self, raw_request: Request) -> Response:
        body = await raw_request.json()
        said = body["messages"][0]["content"]
        self.asked.append(said)
        self.bodies.append(body)
        self.clients.append(raw_request.scope["state"].get(KEY_NAME))
        rows = int(said.split()[1]) if said.startswith("rows") else 1
        weigh(raw_request.scope, rows)
        self.running += rows
        self.most = max(self.most, self.running)
        try:
            return await self._answer(said)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= rows

    async def _answer(self, said: str) -> Response:
        await asyncio.sleep(0.001)
        if said.startswith("wait"):
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1
        if said.startswith("break"):
            raise RuntimeError("a bug")
        if said.startswith("busy") and self.asked.count(said) == 1:
            return JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After-Ms": "10"})
        if said.startswith("down"):
            return JSONResponse({"error": {"message": "down"}}, 503)
        if said.startswith("text"):
            return PlainTextResponse("no JSON")
        if said.startswith("bad"):
            return JSONResponse({"error": {"message": "bad"}}, 400)
        return JSONResponse({"choices": [{"message": {"content": f"re: {said}"}}]})


def batch_app(
    folder: Path | None,
    keys: Sequence[str] = (),
    rows: int = 4,
    policy: str = "fcfs",
    edges: dict[str, Any] | None = None,
    **settings: Any,
) -> FastAPI:
    """An application inside the edges, with batches in a folder.

    Args:
        folder: of ``--batch-dir``.
        keys: the keys it accepts.
        rows: how many its engine would run at the same time.
        policy: of the scheduler.
        edges: flags of the edges.
        settings: flags of the batches, without ``batch_``.
    """
    app = FastAPI()
    errors.install(app)
    app.state.engine_client = SimpleNamespace(
        capacity=SimpleNamespace(max_rows=rows), health=lambda: {"large": True}
    )
    route = app.state.route = Route()

    @app.post(CHAT, response_model=None)
    @with_cancellation  # type: ignore[untyped-decorator]
    async def chat(body: dict[str, Any], raw_request: Request) -> Response:
        return await route.answer(raw_request)

    edge_settings = EdgeSettings(**(edges or {}))
    stack.install(app, edge_settings, keys, rows)
    if folder is not None:
        prepare(folder)
    given = {f"batch_{name}": value for name, value in settings.items()}
    batches = BatchSettings(batch_dir=folder, **given)
    args = Namespace(batches=batches, edges=edge_settings, scheduling_policy=policy)
    routes.install(app, args)
    return app


@contextmanager
def serving(app: FastAPI, key: str = "none") -> Iterator[openai.OpenAI]:
    """The openai client of an application that runs in another thread."""
    with TestClient(app) as http:
        yield client_of(http, key)


def client_of(http: TestClient, key: str = "none") -> openai.OpenAI:
    """An openai client on the connection of another."""
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key=key, http_client=http, max_retries=0
    )


def upload(client: openai.OpenAI, data: bytes, name: str = "in.jsonl") -> str:
    """Uploads an input file; its id."""
    return client.files.create(file=(name, data), purpose="batch").id


def begin(client: openai.OpenAI, *lines: Any, **options: Any) -> str:
    """Uploads lines and begins a batch; its id."""
    file_id = upload(client, jsonl(*lines))
    given: Any = {"endpoint": CHAT, "completion_window": "24h", **options}
    return client.batches.create(input_file_id=file_id, **given).id


def until(condition: Callable[[], Any], what: str = "it") -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.01)


def ended(client: openai.OpenAI, batch_id: str) -> Batch:
    """The batch, once it has ended."""
    until(lambda: client.batches.retrieve(batch_id).status in ENDED, "the end")
    return client.batches.retrieve(batch_id)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a file; none if there is no file."""
    if file_id is None:
        return []
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
