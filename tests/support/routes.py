"""The same chat on every route that takes ``decoding``, and where each has the account."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from divserve.http.paths import CHAT, CHAT_BATCH, COMPLETIONS, MESSAGES, RESPONSES
from tests.support import chat

TOKENS = 4


@dataclass(frozen=True)
class Route:
    """One route."""

    path: str
    body: dict[str, Any]
    """A plain request of `chat.MESSAGES` (or `chat.PROMPT`)."""
    prompt: str
    """The field of its prompt."""
    account: Callable[[Any], Any]
    """The account in an answer that is not streamed; None if it has none."""
    text: Callable[[Any], str]
    """The text of such an answer."""
    summary: Callable[[str, Any], Any] | None = None
    """The account in an event of a stream (its name and its data); None if there is no stream."""
    entries: Callable[[str, Any], Any] = lambda name, data: ()
    """The trace entries in such an event."""


def _choice(answer: Any) -> Any:
    return answer["choices"][0]


def _chunk(name: str, data: Any) -> Any:
    found = [choice.get("decoding", {}) for choice in data["choices"]]
    return found[0] if found and "method" in found[0] else None


def _of_chunk(name: str, data: Any) -> Any:
    return data["choices"][0].get("decoding", {}).get("trace", ()) if data["choices"] else ()


def _completed(name: str, data: Any) -> Any:
    return data["response"].get("decoding") if name == "response.completed" else None


def _of_event(name: str, data: Any) -> Any:
    return data.get("decoding", {}).get("trace", ())


def _of_message(name: str, data: Any) -> Any:
    return data.get("decoding") if name == "message_delta" else None


PLAIN = {"model": "smol", "temperature": 0}
CHATS: dict[str, Route] = {
    CHAT: Route(
        CHAT,
        {**PLAIN, "messages": chat.MESSAGES, "max_tokens": TOKENS},
        "messages",
        lambda answer: _choice(answer).get("decoding"),
        lambda answer: str(_choice(answer)["message"]["content"]),
        _chunk,
        _of_chunk,
    ),
    RESPONSES: Route(
        RESPONSES,
        {**PLAIN, "input": chat.MESSAGES[0]["content"], "max_output_tokens": TOKENS},
        "input",
        lambda answer: answer.get("decoding"),
        lambda answer: str(answer["output"][0]["content"][0]["text"]),
        _completed,
        _of_event,
    ),
    MESSAGES: Route(
        MESSAGES,
        {**PLAIN, "messages": chat.MESSAGES, "max_tokens": TOKENS},
        "messages",
        lambda answer: answer.get("decoding"),
        lambda answer: str(answer["content"][0]["text"]),
        _of_message,
        _of_event,
    ),
    CHAT_BATCH: Route(
        CHAT_BATCH,
        {**PLAIN, "messages": [chat.MESSAGES], "max_tokens": TOKENS},
        "messages",
        lambda answer: _choice(answer).get("decoding"),
        lambda answer: str(_choice(answer)["message"]["content"]),
    ),
}
"""The routes that answer a chat, by their path."""

TEXT = Route(
    COMPLETIONS,
    {**PLAIN, "prompt": chat.PROMPT, "max_tokens": TOKENS},
    "prompt",
    lambda answer: _choice(answer).get("decoding"),
    lambda answer: str(_choice(answer)["text"]),
    _chunk,
    _of_chunk,
)
ROUTES = {**CHATS, COMPLETIONS: TEXT}
STREAMED = {path: route for path, route in ROUTES.items() if route.summary is not None}


def events_of(text: str) -> list[tuple[str, Any]]:
    """Name (empty if it has none) and data of every event of a stream."""
    found = []
    for event in text.strip().split("\n\n"):
        name, _, data = event.rpartition("data: ")
        if data != "[DONE]":
            found.append((name.removeprefix("event: ").strip(), json.loads(data)))
    return found
