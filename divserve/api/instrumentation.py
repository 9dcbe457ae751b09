"""The outermost middleware: keeps a record of every HTTP request and reports it when it ends.

It counts the request in the HTTP metrics and hands the record to the sinks (the log, the spans).
It is pure ASGI and outermost, so that it sees the answers of all other layers. The response passes
through untouched; per message it costs one coroutine.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from divserve import metrics
from divserve.api.extras import tell_health
from divserve.api.record import RECORD, Record
from divserve.http.paths import path_of

__all__ = ["Instrumentation", "Sink", "install"]

logger = logging.getLogger("vllm.divserve.api")

Sink = Callable[[Record, str], None]
"""Receives the record of a request that has ended, and the template of its route."""

SCRAPE = "/metrics"
UNKNOWN_ROUTE = "other"
"""Clients choose raw paths: as labels they would fill the memory."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ERROR_EVENTS = (b'data: {"error"', b"event: error\n")
"""How error events begin: OpenAI's chats, then Responses and Anthropic's messages."""


def install(app: FastAPI, sinks: Sequence[Sink] = ()) -> None:
    """Puts `Instrumentation` outside and `Inside` inside all middleware that `app` has so far."""
    outermost = Middleware(Instrumentation, owner=app, sinks=sinks)
    app.user_middleware[:] = [outermost, *app.user_middleware, Middleware(Inside)]


class Inside:
    """Innermost middleware: keeps the scope that the router writes into.

    Middleware in between may pass on a copy of the scope that `Instrumentation` knows.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (record := scope.get(RECORD)) is not None:
            record.scope = scope
        await self.app(scope, receive, send)


class Instrumentation:
    """The middleware.

    Args:
        app: the application it wraps.
        owner: the application, whose routes give their templates.
        sinks: told of every request that has ended.
    """

    def __init__(self, app: ASGIApp, owner: FastAPI, sinks: Sequence[Sink] = ()) -> None:
        self.app = app
        self.owner = owner
        self.sinks = sinks
        self.paths = frozenset(
            path for route in owner.router.routes if (path := getattr(route, "path", None))
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = path_of(scope)
        if path.startswith(SCRAPE):
            tell_health(self.owner.state.engine_client)
        record = scope[RECORD] = Record()
        record.scope = scope

        async def observed_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not record.complete:
                record.gone = True
            return message

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                _note_start(record, message)
            elif message["type"] == "http.response.body":
                body = message.get("body", b"")
                if body.startswith(ERROR_EVENTS):
                    record.error = _error_of(body.partition(b"data: ")[2])
                elif (record.status or 0) >= 400 and record.error is None:
                    record.error = _error_of(body)
                # Set before sending: whoever waits for a disconnect gets one right after the end.
                record.complete = not message.get("more_body", False)
            try:
                await send(message)
            except OSError:
                record.gone, record.complete = True, False
                raise

        try:
            await self.app(scope, observed_receive, observed_send)
        finally:
            self._end(record, path)

    def _end(self, record: Record, path: str) -> None:
        scope = record.scope
        record.duration = time.perf_counter() - record.started
        for report in record.reports:
            report.end()
        route = self._route(scope, path)
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        metrics.HTTP_REQUESTS.labels(route, method, str(record.shown_status)).inc()
        metrics.HTTP_SECONDS.labels(route).observe(record.duration)
        if record.method is not None:
            metrics.REQUESTS.labels(record.method, record.outcome).inc()
        if record.request_id is None:
            record.request_id = Headers(scope=scope).get("x-request-id") or record.answer_id
        for sink in self.sinks:
            try:
                sink(record, route)
            except Exception:
                # A failing sink must not change the answer or stop the other sinks.
                logger.exception("Request %s was not told of", record.request_id)

    def _route(self, scope: Scope, path: str) -> str:
        """The template of the route that answered, or would have."""
        template = getattr(scope.get("route"), "path", None)
        if isinstance(template, str):
            return template
        if path.startswith(SCRAPE):
            return SCRAPE
        return path if path in self.paths else UNKNOWN_ROUTE


def _note_start(record: Record, message: Message) -> None:
    record.status = message["status"]
    for name, value in message.get("headers", ()):
        if name.lower() == b"x-request-id":
            record.request_id = value.decode("latin-1")


def _error_of(body: bytes) -> dict[str, Any] | None:
    """The OpenAI error object of a response or an event; None if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    # An error event of Responses is the object itself.
    error = value if "error" not in value and value.get("type") == "error" else value.get("error")
    return error if isinstance(error, dict) else None
