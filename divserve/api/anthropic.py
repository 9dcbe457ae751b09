"""/v1/messages, which vLLM answers: its errors say what happened, as those of chats do.

vLLM's route turns every exception into a 500, and its event converter treats an error event as a
chunk that does not validate.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from divserve.api.serving import OwnErrors
from divserve.api.stream import error_in
from divserve.errors import ApiError
from divserve.http.errors import error_body
from divserve.http.foreign import foreign_body, status_of, tell
from divserve.http.openai import AnthropicServingMessages, ErrorInfo, ErrorResponse

__all__ = ["Messages"]


class Messages(OwnErrors, AnthropicServingMessages):
    """vLLM's serving class for Anthropic's messages."""

    async def create_messages(self, request: Any, raw_request: Any = None) -> Any:
        """vLLM's answer; the HTTP response reports an error before the first event in full."""
        with _telling(raw_request):
            answer = await super().create_messages(request, raw_request)
            if not isinstance(answer, AsyncGenerator):
                return answer
            first = await anext(answer, "")
        if (error := error_in(first)) is None:
            return _going_on(first, answer)
        await answer.aclose()
        tell(raw_request.scope, error)
        info = {"message": error["message"], "type": error["type"], "code": status_of(error)}
        return ErrorResponse(error=ErrorInfo(**info))

    async def count_tokens(self, request: Any, raw_request: Any = None) -> Any:
        """vLLM's count; if it fails, the HTTP response says why."""
        with _telling(raw_request):
            return await super().count_tokens(request, raw_request)

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


@contextmanager
def _telling(raw_request: Any) -> Iterator[None]:
    """Makes the response of a request report what is raised, which vLLM's route would not."""
    try:
        yield
    except ApiError as error:
        tell(raw_request.scope, error_body(error)["error"])
        raise


async def _going_on(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events, the first of which has been read: until then an error can be an HTTP response."""
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
