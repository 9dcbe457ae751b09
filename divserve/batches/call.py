"""The request of one line, sent through the server's own application in this process.

So a line meets the same validation, methods, aliases, limits, metrics and log as the same body sent
by its client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from divserve.errors import ApiError
from divserve.http.errors import error_body
from divserve.http.foreign import INTERNAL
from divserve.http.scope import KEY_NAME, OWN, WEIGH

__all__ = ["Answer", "Caller"]

logger = logging.getLogger("vllm.divserve.batches")

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


class Caller:
    """Sends lines to an application.

    Args:
        app: the whole application, with its middleware.
        by_priority: whether the scheduler goes by priority.
    """

    def __init__(self, app: ASGIApp, by_priority: bool) -> None:
        self._app = app
        self._by_priority = by_priority

    def encoded(self, path: str, body: Mapping[str, Any]) -> bytes:
        """The body of a line as it is sent; to be called in a thread, as it may be long."""
        if self._by_priority and path in WITH_PRIORITY:
            given = body.get("priority")
            body = {**body, "priority": max(given, BEHIND) if isinstance(given, int) else BEHIND}
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")

    async def call(
        self,
        path: str,
        body: bytes,
        client: str | None,
        weigh: Callable[[int], None],
        left: asyncio.Event,
    ) -> Answer | None:
        """The answer to a line; None if it was told to end before.

        Args:
            path: the route.
            body: the result of `encoded`.
            client: the name of the key for which it is made.
            weigh: told of the rows that it takes; may raise.
            left: ends it.
        """
        request_id = uuid.uuid4().hex
        exchange = _Exchange(body, left)
        scope = _scope(path, request_id, len(body), client, weigh)
        task = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        gone = asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                # It has been told: what has begun in the engine ends there too.
                await asyncio.wait({task}, timeout=LEAVE_S)
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.wait({task, gone})
        if task.cancelled() or exchange.told:
            return None
        if (error := task.exception()) is not None:
            logger.error("Line %s failed", request_id, exc_info=error)
            return Answer(500, request_id, json.dumps(error_body(ApiError(INTERNAL))).encode())
        return exchange.answer(request_id)


class _Exchange:
    """Both sides of a request, in ASGI's messages."""

    def __init__(self, body: bytes, left: asyncio.Event) -> None:
        self.told = False
        """Whether it ended because its client has left; then its answer means nothing."""
        self._body: bytes | None = body
        self._left = left
        self._start: Message | None = None
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        self.told = self.told or self._start is None
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        else:
            self._parts.append(message.get("body", b""))

    def answer(self, request_id: str) -> Answer:
        start = self._start or {"status": 500, "headers": []}
        later = Headers(raw=start["headers"]).get("retry-after-ms", "0")
        return Answer(start["status"], request_id, b"".join(self._parts), int(later) / 1000)


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
