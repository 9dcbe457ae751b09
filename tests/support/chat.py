"""Requests of the end-to-end tests: a document, a question, and the functions that send them."""

from __future__ import annotations

from typing import Any

import openai

DOCUMENT = "Document: The capital of France is Lyon.\n"
QUESTION = "Question: What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": DOCUMENT + QUESTION}]
PROMPT = DOCUMENT + "The capital of France is"

GUIDE = {"without": DOCUMENT}
CAD = {"method": "cad", "guide": GUIDE}
OWN: dict[str, dict[str, Any]] = {"vdgd": {"grounding": DOCUMENT}, "entropy_temperature": {}}
"""Fields that the methods without a second stream require."""


def guided(method: str = "cad", **fields: Any) -> dict[str, Any]:
    """A ``decoding`` object whose guide, if it takes one, is the request without the document."""
    return {"method": method, **OWN.get(method, {"guide": GUIDE}), **fields}


def chat(client: openai.OpenAI, decoding: Any = None, **fields: Any) -> Any:
    """A chat completion (or its stream): greedy, short, guided if ``decoding`` is given."""
    extra = {**({"decoding": decoding} if decoding else {}), **fields.pop("extra_body", {})}
    body = {"model": "smol", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, **fields}
    return client.chat.completions.create(**body, extra_body=extra)


def complete(client: openai.OpenAI, decoding: Any = None, **fields: Any) -> Any:
    """A text completion (or its stream), likewise."""
    extra = {**({"decoding": decoding} if decoding else {}), **fields.pop("extra_body", {})}
    body = {"model": "smol", "prompt": PROMPT, "temperature": 0, "max_tokens": 12, **fields}
    return client.completions.create(**body, extra_body=extra)


def account(choice: Any) -> Any:
    """The ``decoding`` object of a choice or chunk, or None."""
    return (choice.model_extra or {}).get("decoding")


class Streamed:
    """What a stream of chat chunks (or of text chunks) adds up to, per choice."""

    def __init__(self, chunks: Any) -> None:
        self.chunks = list(chunks)
        self.text: dict[int, str] = {}
        self.trace: dict[int, list[Any]] = {}
        self.summary: dict[int, Any] = {}
        self.finish: dict[int, str] = {}
        self.usage: Any = None
        for chunk in self.chunks:
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                self._add(choice)

    def _add(self, choice: Any) -> None:
        index = choice.index
        text = choice.text if hasattr(choice, "text") else choice.delta.content
        self.text[index] = self.text.get(index, "") + (text or "")
        if (found := account(choice)) is not None:
            self.trace.setdefault(index, []).extend(found.get("trace", []))
            if "method" in found:
                assert index not in self.summary
                self.summary[index] = found
        if choice.finish_reason:
            assert index not in self.finish
            self.finish[index] = choice.finish_reason
