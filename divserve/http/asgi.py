"""ASGI messages: reading a body before its route does."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

__all__ = ["is_json", "read_body", "replay"]


def is_json(scope: Scope) -> bool:
    """Whether the body may be JSON: its content type says so, or there is none."""
    media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    return not media_type or media_type.endswith("json")


async def read_body(receive: Receive, limit: int | None = None) -> list[Message] | None:
    """All messages of the body, or those up to and including a disconnect.

    Args:
        receive: of the request.
        limit: bytes after which reading stops and None is returned.
    """
    messages = [await receive()]
    size = len(messages[0].get("body", b""))
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        if limit is not None and size > limit:
            return None
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
    return None if limit is not None and size > limit else messages


def replay(messages: list[Message], receive: Receive) -> Receive:
    """Replays `messages`, then passes on what comes next (such as the disconnect)."""
    kept = iter(messages)

    async def replayed() -> Message:
        for message in kept:
            return message
        return await receive()

    return replayed
