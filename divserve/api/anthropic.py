"""/v1/messages, which vLLM answers: its errors say what has happened, as those of chats do.

vLLM's route makes a 500 of whatever is raised, and its converter of events takes an error event for
a chunk that does not validate.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from divserve.api.errors import error_body
from divserve.api.foreign import foreign_body, status_of, tell
from divserve.api.serving import OwnErrors
from divserve.api.stream import error_in
from divserve.engine.openai import AnthropicServingMessages, ErrorInfo, ErrorResponse
from divserve.errors import ApiError

__all__ = ["Messages"]


class Messages(OwnErrors, AnthropicServingMessages):
    """vLLM's serving of Anthropic's messages."""

    async def create_messages(self, request: Any, raw_request: Any = None) -> Any:
        """vLLM's answer; of an error before its first event, the HTTP response will say all."""
        try:
            answer = await super().create_messages(request, raw_request)
            if isinstance(answer, AsyncGenerator):
                answer = await _begun(answer)
        except _FailedFirst as failed:
            tell(raw_request.scope, failed.error)
            return ErrorResponse(
                error=ErrorInfo(
                    message=failed.error["message"],
                    type=failed.error["type"],
                    code=status_of(failed.error),
                )
            )
        except ApiError as error:
            tell(raw_request.scope, error_body(error)["error"])
            raise
        return answer

    async def count_tokens(self, request: Any, raw_request: Any = None) -> Any:
        """vLLM's count; the HTTP response will say why there is none."""
        try:
            return await super().count_tokens(request, raw_request)
        except ApiError as error:
            tell(raw_request.scope, error_body(error)["error"])
            raise

    async def message_stream_converter(
        self, generator: AsyncGenerator[str, None], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """vLLM's events; an error of the chat below ends them as an error event."""
        failed: dict[str, Any] | None = None

        async def chunks() -> AsyncGenerator[str, None]:
            nonlocal failed
            async with aclosing(generator):
                async for event in generator:
                    if (failed := error_in(event)) is not None:
                        return
                    yield event

        below = chunks()
        events = super().message_stream_converter(below, *args, **kwargs)
        async with aclosing(below), aclosing(events):
            async for event in events:
                if (other := error_in(event)) is not None:
                    failed = foreign_body(500, {"error": other})[1]["error"]
                    break
                yield event
        if failed is not None:
            yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': failed})}\n\n"


class _FailedFirst(Exception):
    """The first event of a stream is an error.

    Args:
        error: in OpenAI's shape.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error


async def _begun(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events, once the first one is there: until then an error can still be a response."""
    first = await anext(events, "")
    if (error := error_in(first)) is not None:
        await events.aclose()
        raise _FailedFirst(error)

    async def all_of_them() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()
