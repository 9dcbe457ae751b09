"""What the chunks of a stream add up to: texts and accounts, the whole trace included.

Stream helpers of several clients keep the last ``decoding`` that they see, or none of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from divserve.client.accounts import Account, Token, plain

__all__ = ["Collected", "Collector", "acollect", "collect", "merged"]

ENDS = ("response.completed", "response.incomplete", "response.failed")
"""Events of /v1/responses whose response has the whole account."""


@dataclass(slots=True)
class Collected:
    """One answer per choice; a response and a message have one."""

    texts: list[str] = field(default_factory=list)
    accounts: list[Account | None] = field(default_factory=list)
    finish_reasons: list[str | None] = field(default_factory=list)
    usage: Mapping[str, Any] | None = None


class Collector:
    """Adds up the chunks of a stream of chats, completions, responses or messages."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._accounts: dict[int, dict[str, Any]] = {}
        self._finish: dict[int, str] = {}
        self._usage: Mapping[str, Any] | None = None
        self._carried: list[Any] = []

    def add(self, chunk: Any) -> list[Token]:
        """Adds a chunk: an object of a client, or its JSON.

        Returns:
            The entries of the trace that it carries, of all choices.
        """
        # Of the events of openai's stream helper those of type "chunk" have what came.
        body = plain(getattr(chunk, "chunk", chunk))
        self._carried = []
        if "choices" in body:
            self._usage = body.get("usage") or self._usage
            for choice in body["choices"]:
                self._add_choice(choice)
        elif body.get("type") in ENDS:
            response = body["response"]
            self._usage = response.get("usage") or self._usage
            self._finish[0] = response.get("status") or ""
            # It has what the events before it had, too.
            account = dict(response.get("decoding") or {})
            if "trace" not in self._accounts.get(0, {}):
                self._carried = account.get("trace", [])
            self._accounts[0] = account
        else:
            self._add_event(body)
        return [Token.model_validate(entry) for entry in self._carried]

    def result(self) -> Collected:
        """What there is so far."""
        places = sorted({*self._texts, *self._accounts, *self._finish})
        return Collected(
            [self._texts.get(place, "") for place in places],
            [_finished(self._accounts.get(place)) for place in places],
            [self._finish.get(place) for place in places],
            self._usage,
        )

    def _add_choice(self, choice: Mapping[str, Any]) -> None:
        place = choice["index"]
        delta = choice.get("delta") or {}
        text = choice.get("text") if "text" in choice else delta.get("content")
        self._texts[place] = self._texts.get(place, "") + (text or "")
        if choice.get("finish_reason"):
            self._finish[place] = choice["finish_reason"]
        self._merge(place, choice.get("decoding"))

    def _add_event(self, body: Mapping[str, Any]) -> None:
        """An event of a response or of a message."""
        kind, delta = body.get("type"), body.get("delta")
        if kind == "response.output_text.delta":
            self._texts[0] = self._texts.get(0, "") + str(delta)
        elif kind == "content_block_delta" and isinstance(delta, Mapping):
            self._texts[0] = self._texts.get(0, "") + (delta.get("text") or "")
        elif kind == "message_delta" and isinstance(delta, Mapping):
            self._finish[0] = delta.get("stop_reason") or ""
            self._usage = body.get("usage") or self._usage
        self._merge(0, body.get("decoding"))

    def _merge(self, place: int, account: Mapping[str, Any] | None) -> None:
        if account:
            self._carried += account.get("trace", ())
            self._accounts[place] = merged(self._accounts.get(place, {}), account)


def merged(known: Mapping[str, Any], account: Mapping[str, Any]) -> dict[str, Any]:
    """The account so far and what a chunk adds to it: entries of the trace are appended."""
    trace = [*known.get("trace", ()), *account.get("trace", ())]
    return {**known, **account, **({"trace": trace} if trace else {})}


def collect(stream: Iterable[Any]) -> Collected:
    """Reads a stream to its end."""
    collector = Collector()
    for chunk in stream:
        collector.add(chunk)
    return collector.result()


async def acollect(stream: AsyncIterable[Any]) -> Collected:
    """Reads a stream of an asynchronous client to its end."""
    collector = Collector()
    async for chunk in stream:
        collector.add(chunk)
    return collector.result()


def _finished(account: dict[str, Any] | None) -> Account | None:
    """None for a plain answer, and for one that was cut off before its account came."""
    return Account.model_validate(account) if account and "method" in account else None
