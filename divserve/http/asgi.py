"""ASGI messages: reading a body before its route does."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

__all__ = ["EMPTY", "is_json", "read_body", "replay"]


EMPTY: Message = {"type": "http.request", "body": b"", "more_body": False}
"""The message of a request without a body."""


def is_json(scope: Scope) -> bool:
    """Whether the body may be JSON: its content type says so, or there is none."""
    media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    return not media_type or media_type.endswith("json")


async def read_body(
    receive: Receive, limit: int | None = None, count: Callable[[int], None] = lambda size: None
) -> list[Message] | None:
    """All messages of the body, or those up to and including a disconnect.

    Args:
        receive: of the request.
        limit: bytes after which reading stops and None is returned.
        count: told of the bytes of each message; what it raises ends the reading.
    """
    messages: list[Message] = []
    size, more = 0, True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)
        messages.append(message)
        count(len(message.get("body", b"")))
        size += len(message.get("body", b""))
        if limit is not None and size > limit:
            return None
    return messages


def replay(messages: list[Message], receive: Receive) -> Receive:
    """Replays `messages`, then passes on what comes next (such as the disconnect)."""
    kept = iter(messages)

    async def replayed() -> Message:
        for message in kept:
            return message
        return await receive()

    return replayed
