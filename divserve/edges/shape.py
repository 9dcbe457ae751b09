"""Answers every failure inside in OpenAI's shape."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from divserve.edges.request_id import request_id_of
from divserve.errors import ApiError
from divserve.http.errors import error_response
from divserve.http.foreign import INTERNAL, foreign_body, status_of, told_of
from divserve.http.named import named
from divserve.http.paths import PROBES, path_of

__all__ = ["ShapeErrors"]

logger = logging.getLogger("vllm.divserve.edges")

RETRY_AFTER_S = {
    "shutting_down": b"5",
    "engine_unavailable": b"5",
    "service_unavailable": b"1",
    "rate_limit_exceeded": b"1",
}
"""Seconds until a retry may succeed, by the code of a 429 or 503 that does not say: vLLM's queue,
its scaling, and streams that end before their first event."""
ANTHROPIC = "/v1/messages"
"""Clients of this path recognise an error by its outer type."""
MOST_TEXT = 2000
"""Bytes of an answer in plain text that are repeated."""
KEPT = (b"content-type", b"content-length")
"""Headers that are set anew with the new body; all others stay."""


class ShapeErrors:
    """Pure ASGI middleware: rewrites error responses and answers uncaught exceptions.

    Answers below 400 and those of the probes pass unchanged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            logger.exception("Request %s failed", request_id_of(scope))
            if answer.started:
                # A half-sent answer can only be cut off, which the server does when this is raised.
                raise
            shaped = _Answer(scope, receive, send)
            await error_response(ApiError(INTERNAL))(scope, receive, shaped.send)


class _Answer:
    """One answer on its way to the client."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = False
        self._scope, self._receive, self._send = scope, receive, send
        self._error: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        fails = message["type"] == "http.response.start" and message["status"] >= 400
        if fails and path_of(self._scope) not in PROBES:
            self._error = message
            return
        if self._error is None:
            self.started = True
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            self.started = True
            await self._response(self._error)(self._scope, self._receive, self._send)

    def _plain_text(self, start: Message) -> str | None:
        """What a client error says in plain text, such as why a preflight (CORS) is refused."""
        kind = Headers(raw=start["headers"]).get("content-type", "")
        if start["status"] >= 500 or not kind.startswith("text/plain"):
            return None
        return self._body[:MOST_TEXT].decode(errors="replace")

    def _response(self, start: Message) -> JSONResponse:
        """The collected error in OpenAI's shape; unchanged if it already had that shape."""
        try:
            body = json.loads(self._body)
        except ValueError:
            body = self._plain_text(start)
        if (told := told_of(self._scope)) is not None:
            body = {**(body if isinstance(body, dict) else {}), "error": told}
            start = {**start, "status": status_of(told)}
        status, shaped = foreign_body(start["status"], body)
        if status < 500:
            shaped["error"] = named(shaped["error"], path_of(self._scope))
        if start["status"] >= 500 and shaped != body:
            said = self._body[:MOST_TEXT].decode(errors="replace")
            logger.error("Request %s failed: %s", request_id_of(self._scope), said)
        if path_of(self._scope).startswith(ANTHROPIC):
            shaped = {"type": "error", **shaped}
        response = JSONResponse(shaped, status_code=status)
        response.raw_headers += [pair for pair in start["headers"] if pair[0].lower() not in KEPT]
        later = _later(status, shaped["error"])
        if later and "retry-after" not in Headers(raw=response.raw_headers):
            response.raw_headers.append((b"retry-after", later))
        return response


def _later(status: int, error: Mapping[str, Any]) -> bytes | None:
    """Seconds until a retry may succeed; None if none would (an error with a ``param``, say)."""
    if status not in (429, 503) or error["param"] is not None:
        return None
    return RETRY_AFTER_S.get(error["code"])
