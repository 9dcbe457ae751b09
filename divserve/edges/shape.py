"""Whatever goes wrong inside is answered in OpenAI's shape."""

from __future__ import annotations

import json
import logging
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from divserve.api.errors import error_response
from divserve.api.foreign import INTERNAL, foreign_body
from divserve.edges.paths import PROBES, path_of
from divserve.edges.request_id import request_id_of
from divserve.errors import ApiError

__all__ = ["ShapeErrors"]

logger = logging.getLogger("vllm.divserve.edges")

RETRY_AFTER_S = b"1"
KEPT = (b"content-type", b"content-length")
"""Headers that the new body makes anew; all others stay."""


class ShapeErrors:
    """Pure ASGI middleware: rewrites error responses, and answers what nobody has caught.

    Answers below 400 and those of the probes pass as they are.
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
                # Half an answer can only be cut off, which the server does with what is raised.
                raise
            await error_response(ApiError(INTERNAL))(scope, receive, send)


class _Answer:
    """One answer on its way out."""

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

    def _response(self, start: Message) -> JSONResponse:
        """The collected error in OpenAI's shape; as it was, if it had that."""
        try:
            body = json.loads(self._body)
        except ValueError:
            body = None
        status, shaped = foreign_body(start["status"], body)
        if start["status"] >= 500 and shaped != body:
            told = self._body[:2000].decode(errors="replace")
            logger.error("Request %s failed: %s", request_id_of(self._scope), told)
        response = JSONResponse(shaped, status_code=status)
        response.raw_headers += [pair for pair in start["headers"] if pair[0].lower() not in KEPT]
        if _says_later(status, body) and "retry-after" not in Headers(raw=response.raw_headers):
            response.raw_headers.append((b"retry-after", RETRY_AFTER_S))
        return response


def _says_later(status: int, body: Any) -> bool:
    """Whether it is an error of vLLM's that another try would mend: its queue, its scaling."""
    told = body.get("error") if isinstance(body, dict) else None
    return status in (429, 503) and not isinstance(
        told.get("code") if isinstance(told, dict) else None, str
    )
