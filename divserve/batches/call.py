"""The request of one line, sent through the server's own application in this process.

So a line meets the same validation, methods, aliases, limits, metrics and log as the same body sent by
its client.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from divserve.errors import InvalidRequest
from divserve.http.errors import error_body
from divserve.http.scope import KEY_NAME, OWN, WEIGH

__all__ = ["Answer", "Caller"]

LEAVE_S = 10.0
"""Longest wait for a request to end when it is told that its client has left."""
BEHIND = 1
"""The priority of a line where the scheduler goes by priority: a request of a client has 0."""
WITH_PRIORITY = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


@dataclass(frozen=True)
class Answer:
    """What the application answered."""

    status: int
    request_id: str
    body: bytes
    retry_after_s: float = 0.0
    code: str | None = None
    """Of an error."""


class Caller:
    """Sends lines to an application.

    Args:
        app: the whole application, with its middleware.
        by_priority: whether the scheduler goes by priority.
    """

    def __init__(self, app: ASGIApp, by_priority: bool) -> None:
        self._app = app
        self._by_priority = by_priority

    async def call(
        self,
        path: str,
        body: Mapping[str, Any],
        client: str | None,
        weigh: Callable[[int], None],
        left: asyncio.Event,
    ) -> Answer | None:
        """The answer to a line; None if it was told to end before.

        Args:
            path: the route.
            body: of the request.
            client: the name of the key for which it is made.
            weigh: told of the rows that it takes; may raise.
            left: ends it.
        """
        request_id = uuid.uuid4().hex
        if body.get("stream"):
            refused = error_body(
                InvalidRequest("A line of a batch has no stream: leave it out.", param="stream")
            )
            return Answer(400, request_id, json.dumps(refused).encode())
        exchange = _Exchange(self._encoded(path, body), left)
        scope = _scope(path, request_id, len(exchange.body), client, weigh)
        task = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        gone = asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                # It has been told; a request that the engine has begun is ended there too.
                await asyncio.wait({task}, timeout=LEAVE_S)
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.wait({task, gone})
        if not task.cancelled():
            task.result()
        return None if left.is_set() and not exchange.complete else exchange.answer(request_id)

    def _encoded(self, path: str, body: Mapping[str, Any]) -> bytes:
        if self._by_priority and path in WITH_PRIORITY:
            given = body.get("priority")
            body = {**body, "priority": max(given, BEHIND) if isinstance(given, int) else BEHIND}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


class _Exchange:
    """Both sides of a request, in ASGI's messages."""

    def __init__(self, body: bytes, left: asyncio.Event) -> None:
        self.body = body
        self.complete = False
        self._left = left
        self._start: Message = {"status": 500, "headers": []}
        self._parts: list[bytes] = []
        self._asked = False

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            self.complete = not message.get("more_body", False)

    def answer(self, request_id: str) -> Answer:
        body, headers = b"".join(self._parts), Headers(raw=self._start["headers"])
        later, code = 0.0, None
        with suppress(ValueError):
            later = int(headers.get("retry-after-ms", "0")) / 1000
        if self._start["status"] >= 400:
            with suppress(ValueError, KeyError, TypeError):
                code = json.loads(body)["error"]["code"]
        return Answer(self._start["status"], request_id, body, later, code)


def _scope(
    path: str, request_id: str, size: int, client: str | None, weigh: Callable[[int], None]
) -> dict[str, Any]:
    state: dict[str, Any] = {OWN: True, WEIGH: weigh}
    if client is not None:
        state[KEY_NAME] = client
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(size).encode()),
            (b"x-request-id", request_id.encode()),
        ],
        "client": None,
        "server": None,
        "state": state,
    }
