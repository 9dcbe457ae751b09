"""Small applications inside the edges, and handmade ASGI messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from divserve.edges import stack
from divserve.edges.flags import EdgeSettings
from divserve.http import errors
from divserve.http.scope import weigh

DISCONNECT = {"type": "http.disconnect"}

LIMITS: dict[str, Any] = {
    "max_n": 2,
    "max_stop_strings": 2,
    "max_stop_length": 5,
    "max_batch_prompts": 2,
    "max_trace_tokens": 100,
    "max_trace_candidates": 200,
    "max_rows_per_request": 4,
    "max_messages": 8,
    "max_parts": 8,
    "max_tools": 3,
    "max_json_values": 300,
    "max_json_depth": 12,
    "max_body_bytes": 5000,
}
"""Small enough for a test to exceed."""


class Engine:
    """The part of a client that the probes use."""

    alive = True

    def health(self) -> dict[str, bool]:
        return {"large": self.alive}


def small_app(keys: Sequence[str] = (), rows: int = 2, **flags: Any) -> FastAPI:
    """An app with a few routes inside the edges.

    Args:
        keys: the keys it accepts.
        rows: how many its engine would run at the same time.
        flags: those that differ from their defaults.
    """
    app = FastAPI()
    errors.install(app)
    app.state.engine_client = Engine()
    app.state.gate = asyncio.Event()
    app.state.asked = 0

    @app.get("/v1/models")
    @app.get("/health")
    @app.get("/ping")
    @app.get("/metrics")
    async def read() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, int]:
        app.state.asked += 1
        return {"bytes": len(await request.body())}

    @app.api_route("/put", methods=["PUT", "PATCH", "DELETE"])
    async def put(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/read")
    @app.post("/wait/{rows}")
    async def wait(request: Request, rows: int = 0) -> StreamingResponse:
        weigh(request.scope, rows)

        async def events() -> Any:
            yield "data: first\n\n"
            await app.state.gate.wait()
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    stack.install(app, EdgeSettings(**flags), keys, rows)
    return app


class Call:
    """One request to an ASGI app, message by message.

    Args:
        app: the application.
        path: of the request.
        chunks: of the body.
        leaves: whether the client hangs up after the chunks.
        stalls: whether more is announced and never comes.
        after: what the body waits for.
        options: more of the scope; ``headers`` as a mapping.
    """

    def __init__(
        self,
        app: Any,
        path: str,
        *chunks: bytes,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        leaves: bool = False,
        stalls: bool = False,
        after: asyncio.Event | None = None,
        **options: Any,
    ) -> None:
        self.sent: list[Any] = []
        self.read = 0
        self._left = asyncio.Event()
        self._after = after
        last = len(chunks) - 1
        self._incoming: list[Any] = [
            {"type": "http.request", "body": chunk, "more_body": leaves or stalls or i < last}
            for i, chunk in enumerate(chunks or [b""])
        ]
        if leaves:
            self._left.set()
        raw = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": raw, "client": ("10.0.0.1", 5), "server": ("test", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(app({**scope, **options}, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._after is not None:
            await self._after.wait()
        if self._incoming:
            self.read += 1
            return self._incoming.pop(0)
        await self._left.wait()
        return DISCONNECT

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        """The client hangs up."""
        self._left.set()

    async def started(self) -> int:
        """The status, once it is known."""
        while not self.sent:
            await asyncio.sleep(0)
        status: int = self.sent[0]["status"]
        return status

    async def ended(self) -> int:
        """The status, once the app has returned."""
        await self.task
        return await self.started()

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)
