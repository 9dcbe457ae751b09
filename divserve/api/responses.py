"""/v1/responses, which vLLM answers: makes bad input a 400, and a failing stream an error event.

vLLM validates that route's body loosely and then reads parts that an item may not have (a refusal
has no ``text``), which would be a 500; and an engine that dies, or a drain that times out, would
cut a stream off silently. Background answers are rejected: they would not be counted, and a drain
would not wait for them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

from openai.types.responses import ResponseErrorEvent

from divserve.errors import ApiError, InvalidRequest
from divserve.http.errors import error_body
from divserve.http.foreign import foreign_body, status_of
from divserve.http.openai import create_error_response

__all__ = ["install"]

logger = logging.getLogger("vllm.divserve.api")

P = ParamSpec("P")
R = TypeVar("R")
Events = AsyncGenerator[Any, None]


def install(renderer: Any, serving: Any) -> None:
    """Wraps vLLM's methods in the checks.

    Args:
        renderer: vLLM's ``OnlineRenderer``.
        serving: its ``OpenAIServingResponses``.
    """
    renderer.render_responses = _readable(renderer.render_responses)
    serving.create_responses = _in_the_foreground(serving.create_responses)
    serving.responses_stream_generator = _telling(serving.responses_stream_generator)


def _readable(render: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Raises `InvalidRequest` where `render` fails in a way that vLLM treats as a server error."""

    @functools.wraps(render)
    async def rendered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await render(*args, **kwargs)
        except (TypeError, LookupError, AttributeError, AssertionError) as error:
            raise InvalidRequest(
                f"The input cannot be read: {type(error).__name__}: {error}", param="input"
            ) from error

    return rendered


def _in_the_foreground(create: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R]]:
    """Raises `InvalidRequest` for an answer that would be generated after the response."""

    @functools.wraps(create)
    async def created(request: Any, *args: Any, **kwargs: Any) -> R:
        if request.background:
            raise InvalidRequest(
                "This server makes no answers in the background: leave 'background' out.",
                param="background",
            )
        return await create(request, *args, **kwargs)

    return created


def _telling(stream: Callable[P, Events]) -> Callable[P, Events]:
    """Ends a stream that fails with an error event, as OpenAI does."""

    @functools.wraps(stream)
    async def events(*args: P.args, **kwargs: P.kwargs) -> Events:
        sent = 0
        try:
            async with aclosing(stream(*args, **kwargs)) as below:
                async for event in below:
                    yield event
                    sent += 1
        except Exception as failure:
            error = _error_object(failure)
            if status_of(error) >= 500 and not isinstance(failure, ApiError):
                logger.exception("A stream of /v1/responses failed")
            told = {name: error[name] for name in ("code", "message", "param")}
            yield ResponseErrorEvent(type="error", sequence_number=sent, **told)

    return events


def _error_object(error: Exception) -> dict[str, Any]:
    """The error in OpenAI's shape; vLLM knows which of its own exceptions are client errors."""
    if isinstance(error, ApiError):
        body = error_body(error)
    else:
        body = create_error_response(error).model_dump()
        body = foreign_body(body["error"]["code"], body)[1]
    found: dict[str, Any] = body["error"]
    return found
