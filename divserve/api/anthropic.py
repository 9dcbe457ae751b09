"""Guided messages (Anthropic's) on top of vLLM's serving class, and errors that say what happened.

vLLM answers a message by a chat below it. The account of the chat's only choice is moved into the
message, or into the events:

    {"type": "message", "content": […], "usage": {…}, "decoding": {…}}

    event: content_block_delta    {…, "decoding": {"trace": […]}}     if entries are due
    event: message_delta          {…, "usage": {…}, "decoding": {…}}  the rest of the object

vLLM's routes turn every exception into a 500, and its event converter treats an error event as a
chunk that does not validate.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from divserve.api.anthropic_documents import marked
from divserve.api.bodies import CountRequest, MessagesRequest
from divserve.api.chat import GuidedChat
from divserve.api.documents import MARK
from divserve.api.requests import ChatRequest
from divserve.api.stream import error_in
from divserve.http.foreign import foreign_body, status_of, tell
from divserve.http.openai import (
    AnthropicMessagesResponse,
    AnthropicServingMessages,
    ErrorInfo,
    ErrorResponse,
)

__all__ = ["GuidedMessages", "answer_count", "answer_message"]


async def answer_message(request: MessagesRequest, raw_request: Request) -> Response:
    """The response to a message.

    vLLM's own function does the same, but catches what handlers of the app are there for.
    """
    serving = raw_request.app.state.anthropic_serving_messages
    answer = await serving.create_messages(request, raw_request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    if isinstance(answer, AnthropicMessagesResponse):
        return JSONResponse(answer.model_dump(exclude_none=True))
    return StreamingResponse(answer, media_type="text/event-stream")


async def answer_count(request: CountRequest, raw_request: Request) -> Response:
    """The number of tokens of a message; vLLM's own function is left out for the same reason."""
    serving = raw_request.app.state.anthropic_serving_messages
    answer = await serving.count_tokens(request, raw_request)
    if isinstance(answer, ErrorResponse):
        return JSONResponse(answer.model_dump(), status_code=answer.error.code)
    return JSONResponse(answer.model_dump(exclude_none=True))


class GuidedMessage(AnthropicMessagesResponse):
    """A message with the account of how it was decoded."""

    decoding: dict[str, Any]


class GuidedMessages(GuidedChat, AnthropicServingMessages):
    """The chat below decodes; this class carries what was asked down, and the account up."""

    async def create_messages(self, request: Any, raw_request: Any = None) -> Any:
        """vLLM's answer; the HTTP response reports an error before the first event in full."""
        answer = await super().create_messages(request, raw_request)
        if not isinstance(answer, AsyncGenerator):
            return answer
        first = await anext(answer, "")
        if (failed := error_in(first)) is None:
            return _going_on(first, answer)
        await answer.aclose()
        tell(raw_request.scope, failed)
        info = {"message": failed["message"], "type": failed["type"], "code": status_of(failed)}
        return ErrorResponse(error=ErrorInfo(**info))

    @classmethod
    def to_chat_completion_request(cls, anthropic_request: Any, **kwargs: Any) -> Any:
        """vLLM's chat, which decodes as the message asks.

        Raises:
            InvalidRequest: it cannot be decoded as asked.
        """
        chat = super().to_chat_completion_request(anthropic_request, **kwargs)
        if not isinstance(anthropic_request, MessagesRequest):
            return chat
        # vLLM has validated the fields, and sets some of them afterwards.
        own = ChatRequest.model_construct(chat.model_fields_set, **dict(chat))
        own.take(anthropic_request)
        return own

    @classmethod
    def _convert_block(
        cls, block: Any, role: str, content_parts: list[Any], *args: Any, **kwargs: Any
    ) -> None:
        """vLLM's conversion, which keeps the mark of a document."""
        if block.type == "text" and block.name == MARK and block.text:
            content_parts.append(marked(block.text))
            return
        super()._convert_block(block, role, content_parts, *args, **kwargs)

    @classmethod
    def _convert_message_content(cls, msg: Any, openai_msg: Any, *args: Any, **kwargs: Any) -> None:
        """vLLM's conversion, which replaces a single part by its text: not that of a document."""
        super()._convert_message_content(msg, openai_msg, *args, **kwargs)
        text = openai_msg.get("content")
        if isinstance(text, str) and any(block.name == MARK for block in msg.content):
            openai_msg["content"] = [marked(text)]

    def messages_full_converter(self, generator: Any) -> Any:
        """vLLM's message, with the account of the chat."""
        message = super().messages_full_converter(generator)
        account = getattr(generator.choices[0], "decoding", None)
        return message if account is None else GuidedMessage(**dict(message), decoding=account)

    async def message_stream_converter(
        self, generator: AsyncGenerator[str, None], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        """vLLM's events with the account; an error of the chat below ends them as an error
        event."""
        failed: dict[str, Any] | None = None
        account = Account()

        async def chunks() -> AsyncGenerator[str, None]:
            nonlocal failed
            async with aclosing(generator):
                async for event in generator:
                    if (failed := error_in(event)) is not None:
                        return
                    account.take(event)
                    yield event

        below = chunks()
        events = super().message_stream_converter(below, *args, **kwargs)
        async with aclosing(below), aclosing(events):
            async for event in events:
                if (other := error_in(event)) is not None:
                    failed = foreign_body(500, {"error": other})[1]["error"]
                    break
                yield account.add_to(event)
        if failed is not None:
            yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': failed})}\n\n"


class Account:
    """The accounts of a chat's chunks, on their way to the events that are made of them."""

    def __init__(self) -> None:
        self._trace: list[Any] = []
        self._rest: dict[str, Any] | None = None

    def take(self, chunk: str) -> None:
        """Takes the account out of a chunk; plain streams have none."""
        if '"decoding":' not in chunk:
            return
        found = json.loads(chunk.removeprefix("data: "))["choices"][0]["decoding"]
        if "method" in found:
            self._rest = found
        else:
            self._trace += found["trace"]

    def add_to(self, event: str) -> str:
        """The event, with the entries that are due, or with the rest of the object."""
        name = event.partition("\n")[0].removeprefix("event: ")
        if name == "message_delta" and self._rest is not None:
            told = self._rest
            if "trace" in told:
                told["trace"] = self._trace + told["trace"]
        elif name == "content_block_delta" and self._trace:
            told = {"trace": self._trace}
        else:
            return event
        self._trace = []
        data = {**json.loads(event.partition("data: ")[2]), "decoding": told}
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return f"event: {name}\ndata: {text}\n\n"


async def _going_on(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The events, the first of which has been read: until then an error can be an HTTP response."""
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
