"""A stream whose headers wait, made from vLLM's response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import StreamingResponse

from divserve.api.stream import PrimedResponse, StreamReport


def sent_by(response: PrimedResponse) -> list[Any]:
    """The ASGI messages of its body."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(response.stream_response(send))
    return sent


async def events(*parts: str | bytes) -> AsyncIterator[str | bytes]:
    for part in parts:
        yield part


def test_it_takes_over_what_vllms_response_has() -> None:
    task = BackgroundTask(print)
    given = StreamingResponse(
        events("data: é\n\n"), media_type="text/event-stream", background=task
    )
    response = PrimedResponse.of(given)
    assert response.background is task
    start, *bodies = sent_by(response)
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-accel-buffering"] == b"no"
    assert [(message["type"], message["body"]) for message in bodies] == [
        ("http.response.body", "data: é\n\n".encode()),
        ("http.response.body", b""),
    ]


def test_every_choice_has_the_account_of_its_prompt() -> None:
    asked: list[int] = []

    def new(prompt: int) -> Any:
        asked.append(prompt)
        return SimpleNamespace(add=lambda output: None, summary=lambda: {"prompt": prompt})

    report = StreamReport(new, choices=2, trace=False)
    outputs: list[Any] = [SimpleNamespace(index=i, finish_reason="stop") for i in (0, 1)]
    for prompt in (1, 0, 1):
        report.record(prompt, outputs)
    assert asked == [1, 1, 0, 0]
    choices = [{"index": index, "finish_reason": "stop"} for index in range(4)]
    told = report.add_to(f"data: {json.dumps({'choices': choices})}\n\n")
    found = json.loads(told.removeprefix("data: "))["choices"]
    assert [choice["decoding"] for choice in found] == [{"prompt": i} for i in (0, 0, 1, 1)]


def test_bytes_are_sent_as_they_are() -> None:
    """Even those that look like an error: vLLM sends its errors as text."""
    response = PrimedResponse(events(b'data: {"error": 1}\n\n', b"\xff"))
    assert [message.get("body") for message in sent_by(response)] == [
        None, b'data: {"error": 1}\n\n', b"\xff", b"",
    ]  # fmt: skip


EVENT = 'data: {"choices": [{"index": 0}]}\n\n'
ERROR = 'data: {"error": {"message": "m", "type": "server_error", "code": "decoding_failed"}}\n\n'
REFUSED = 'data: {"error": {"message": "m", "type": "BadRequestError", "code": 400}}\n\n'
OURS = 'data: {"error": {"message": "m", "type": "invalid_request_error", "code": "x"}}\n\n'


@pytest.mark.parametrize(("error", "status"), [(ERROR, 500), (REFUSED, 400), (OURS, 400)])
def test_an_error_before_the_first_token_is_an_http_error(error: str, status: int) -> None:
    sent = sent_by(PrimedResponse(events(error, EVENT)))
    start, body = sent
    assert (start["type"], start["status"]) == ("http.response.start", status)
    assert dict(start["headers"])[b"content-type"] == b"application/json"
    assert body == {"type": "http.response.body", "body": body["body"]}
    assert json.loads(body["body"]) == json.loads(error[6:])


def test_a_stream_is_sent_as_it_comes() -> None:
    sent = sent_by(PrimedResponse(events(": keep-alive\n\n", EVENT, ERROR)))
    assert (sent[0]["type"], sent[0]["status"]) == ("http.response.start", 200)
    assert b"".join(message["body"] for message in sent[1:]).decode() == (
        ": keep-alive\n\n" + EVENT + ERROR
    )
    assert [message["more_body"] for message in sent[1:]] == [True, True, True, False]


def test_an_empty_stream_ends() -> None:
    start, *bodies = sent_by(PrimedResponse(events()))
    assert start["status"] == 200
    assert b"".join(message["body"] for message in bodies) == b""
    assert [message["more_body"] for message in bodies] == [True, False]
