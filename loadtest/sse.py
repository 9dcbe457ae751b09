"""Reads a streamed answer: server-sent events, their tokens, and faults of the answer."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["Answer", "Events"]


class Events:
    """Splits a byte stream into the data of its events, however the network fragments it."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, received: bytes) -> list[str]:
        """Adds bytes; returns the data of every event that is now complete."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        found = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode())
            elif not line and self._data:
                found.append("\n".join(self._data))
                self._data = []
        return found


class Answer:
    """One streamed chat completion with the times of its tokens.

    Tokens are counted from the usage that vLLM sends with every chunk if asked for
    ``continuous_usage_stats``: a chunk may hold several tokens, or one that has no text yet. A
    server without it is assumed to send one token with each chunk that has text.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.chunks: list[tuple[float, int]] = []
        """Seconds after the request began, and the tokens that arrived then."""
        self.prompt_tokens = 0
        self.done = False
        self.finish: str | None = None
        self.account: dict[str, Any] | None = None
        self.error: str | None = None
        self._events = Events()
        self._counted = 0
        self._reported: int | None = None

    @property
    def tokens(self) -> int:
        """Completion tokens: the server's number, else the number counted."""
        return self._counted if self._reported is None else self._reported

    def feed(self, received: bytes, at: float) -> None:
        """Adds the bytes that arrived ``at`` seconds after the request began."""
        for data in self._events.feed(received):
            if data == "[DONE]":
                self.done = True
                continue
            try:
                self._chunk(json.loads(data), at)
            except (ValueError, TypeError, KeyError, AttributeError):
                self.error = self.error or "a chunk that cannot be read"

    def _chunk(self, chunk: dict[str, Any], at: float) -> None:
        if error := chunk.get("error"):
            name = error.get("code") or error.get("type") or "unnamed"
            self.error = f"error event: {name}"
            return
        has_text = False
        for choice in chunk["choices"]:
            has_text = has_text or bool(choice.get("delta", {}).get("content"))
            self.finish = choice.get("finish_reason") or self.finish
            account = choice.get("decoding")
            if account and "method" in account:
                self.account = account
        if usage := chunk.get("usage"):
            self.prompt_tokens = usage["prompt_tokens"]
            self._reported = usage["completion_tokens"]
            new = self._reported - self._counted
        else:
            new = int(has_text)
        if new > 0:
            self._counted += new
            self.chunks.append((at, new))

    def fault(self) -> str:
        """What is wrong with the whole answer; empty if nothing is.

        A guided answer must say that the method was applied at every token, a plain one must not
        say that any was.
        """
        if self.error:
            return self.error
        if not self.done or self.finish is None:
            return "cut off"
        if not self.tokens:
            return "no tokens"
        if self.kind == "plain":
            return "a method in a plain answer" if self.account else ""
        if self.account is None:
            return "guided, but no account of it"
        if set(self.account["method"].split("+")) != set(self.kind.split("+")):
            return "another method than asked for"
        if self.account.get("applied_steps") != self.tokens:
            return "applied_steps is not the number of tokens"
        return ""
