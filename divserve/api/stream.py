"""Server-sent events: adds the account to the chunks, and turns early errors into HTTP errors.

vLLM pulls a result only after it has sent the chunks of the last one, so what was recorded since
belongs to the next chunks. Tokens that a parser holds back produce no chunk; their entries wait for
the next chunk of their choice.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, cast

from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Send

from divserve.api.report import ChoiceReport, GuidedOutput
from divserve.http.foreign import status_of

__all__ = ["PrimedResponse", "Stream", "StreamReport", "error_in", "reported"]

Stream = Callable[..., AsyncGenerator[str, None]]
"""Makes the events of a stream."""

ERROR_EVENT = 'data: {"error"'
NAMED_ERROR = "event: error\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Keep proxies from buffering the events of a stream."""


def is_error(event: str) -> bool:
    """Whether `event` carries an error object."""
    return event.startswith(ERROR_EVENT)


def error_in(event: str) -> dict[str, Any] | None:
    """The error object that an event carries, OpenAI's or Anthropic's; None if it carries none."""
    if not event.startswith((ERROR_EVENT, NAMED_ERROR)):
        return None
    error: dict[str, Any] = json.loads(event.partition("data: ")[2])["error"]
    return error


class StreamReport:
    """The accounts of all choices of one stream.

    Args:
        new: makes the account of a choice from the index of its prompt.
        choices: number of choices per prompt.
        trace: whether each chunk carries the trace entries of its tokens.
    """

    def __init__(self, new: Callable[[int], ChoiceReport], choices: int, trace: bool) -> None:
        self._new = new
        self._choices = choices
        self._trace = trace
        self._reports: dict[int, ChoiceReport] = {}
        self._due: set[int] = set()

    def record(self, prompt: int, outputs: Iterable[GuidedOutput]) -> None:
        """Records what the engine yielded for the prompt of this index."""
        for output in outputs:
            index = prompt * self._choices + output.index
            if index not in self._reports:
                self._reports[index] = self._new(prompt)
            self._reports[index].add(output)
            if self._trace or output.finish_reason is not None:
                self._due.add(index)

    def add_to(self, event: str) -> str:
        """The event, with the trace entries or the summary of its choices if any are due."""
        if not self._due or not event.startswith("data: {"):
            return event
        chunk = json.loads(event[len("data: ") :])
        for choice in chunk.get("choices", ()):
            index = choice["index"]
            finished = choice.get("finish_reason") is not None
            if index in self._due and (finished or self._trace):
                self._due.discard(index)
                report = self._reports[index]
                choice["decoding"] = (
                    report.summary() if finished else {"trace": report.take_trace()}
                )
        return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def reported(
    events: AsyncGenerator[str, None], results: AsyncGenerator[Any, None], report: StreamReport
) -> AsyncGenerator[str, None]:
    """The events of a guided stream with their accounts; an error ends the stream without [DONE].

    Args:
        events: vLLM's events, made from `results`.
        results: the engine's results, as recorded in `report`; closed together with the stream.
    """
    async with aclosing(results), aclosing(events):
        async for event in events:
            yield report.add_to(event)
            if is_error(event):
                return


class PrimedResponse(StreamingResponse):
    """A stream that sends its headers only with its first event.

    vLLM's engine client validates when the first result is requested; in a stream that is after the
    200. Here an error that comes first becomes an HTTP error. From the second event on the loop is
    Starlette's own, so a token costs nothing extra.
    """

    @classmethod
    def of(cls, response: StreamingResponse) -> PrimedResponse:
        """The same stream as `response`."""
        background: BackgroundTask | None = response.background
        return cls(
            response.body_iterator,
            headers=HEADERS,
            media_type=response.media_type,
            background=background,
        )

    async def stream_response(self, send: Send) -> None:
        """Sends the stream, or the error in its first event."""
        events = aiter(self.body_iterator)
        first = await anext(events, "")
        if isinstance(first, str) and is_error(first):
            await cast(AsyncGenerator[Any, None], events).aclose()
            await _send_error(first, send)
            return
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send(_body(first, self.charset))
        async for event in events:
            await send(_body(event, self.charset))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _body(event: Any, charset: str) -> dict[str, Any]:
    body = event.encode(charset) if isinstance(event, str) else event
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _send_error(event: str, send: Send) -> None:
    body = json.loads(event[len("data: ") :])
    response = JSONResponse(body, status_code=status_of(body["error"]))
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": response.body})
