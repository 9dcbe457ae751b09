"""``x-request-id`` on every answer: the client's own if it is valid, else a new one."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestIds", "request_id_of"]

HEADER = b"x-request-id"
SANE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
STATE = "divserve.request_id"


def request_id_of(scope: Scope) -> str:
    """The id of a request."""
    found: str = scope.get("state", {}).get(STATE, "-")
    return found


class RequestIds:
    """Pure ASGI middleware. The request carries the id too: vLLM derives its own id from it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == HEADER]
        sane = len(given) == 1 and SANE.fullmatch(given[0])
        request_id = given[0] if sane else uuid.uuid4().hex.encode()
        others = [(name, value) for name, value in scope["headers"] if name != HEADER]
        # Put into the scope's own state, which the layers outside this one read too.
        scope.setdefault("state", {})[STATE] = request_id.decode()
        scope = {**scope, "headers": [*others, (HEADER, request_id)]}

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                # vLLM adds one of its own with --enable-request-id-headers.
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != HEADER]
                message = {**message, "headers": [*headers, (HEADER, request_id)]}
            await send(message)

        await self.app(scope, receive, with_id)
