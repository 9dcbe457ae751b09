"""Asks the server: one request for each item of an arm, through the ``openai`` client."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Any

import openai

from divserve.errors import StartupError
from divserve.evaluation.answers import Answer
from divserve.evaluation.arms import Arm, Listed
from divserve.evaluation.items import Item
from divserve.evaluation.statistics import entropy
from divserve.evaluation.traces import TRACE, divergences, swapped
from divserve.remote import Remote

__all__ = ["LIKELIEST", "Server"]

LIKELIEST = 20
"""Log-probs asked for at every position of a sampled answer: as many as vLLM gives by default."""
RETRIES = 20
"""Of requests that the server has no room for; the client waits as long as the server says."""


class Server(Remote):
    """A server whose methods are compared: see `Remote`."""

    def __init__(self, url: str, key: str | None, timeout_s: float = 600) -> None:
        super().__init__(url, key, RETRIES, timeout_s)

    async def methods(self) -> dict[str, Listed]:
        """The decoding methods of the server by name.

        Raises:
            StartupError: nothing that is divserve answers there.
        """
        listed = await self.listed("/decoding/methods", "decoding methods", "method")
        return {name: Listed.of(entry) for name, entry in listed.items()}

    async def ask(
        self, task: str, item: Item, arm: Arm, model: str, seed: int, listed: Mapping[str, Listed]
    ) -> Answer:
        """The answer to one item; it is not judged yet.

        Raises:
            StartupError: the server refused the request.
        """
        decoding = arm.decoding_of(item, listed)
        extra: dict[str, Any] = {"return_token_ids": True, **arm.sampling}
        if decoding is not None:
            extra |= {"decoding": decoding, "return_tokens_as_token_ids": True}
            if not arm.sampled:
                decoding[0]["trace"] = TRACE
        body: dict[str, Any] = {
            "model": model, "messages": item.messages, "max_tokens": item.max_tokens,
            "temperature": arm.temperature, "seed": zlib.crc32(f"{seed} {item.id}".encode()),
        }  # fmt: skip
        if arm.sampled:
            body |= {"logprobs": True, "top_logprobs": LIKELIEST}
        parts = _Parts()
        try:
            stream = await self._client.chat.completions.create(
                **body, stream=True, extra_body=extra
            )
            async for chunk in stream:
                parts.add(chunk)
        except openai.APIError as error:
            raise StartupError(f"{task}, item {item.id}, {arm.name}: {error}") from None
        return parts.answer(task, arm, item, decoding is not None)


class _Parts:
    """What the chunks of a stream add up to."""

    def __init__(self) -> None:
        self.begin, self.first = time.monotonic(), 0.0
        self.text, self.tokens = "", list[int]()
        self.rows: list[list[float]] = []
        self.account: dict[str, Any] = {}

    def add(self, chunk: Any) -> None:
        for choice in chunk.choices:
            more = choice.model_extra or {}
            self.tokens += more.get("token_ids") or []
            self.account |= more.get("decoding") or {}
            if self.tokens and not self.first:
                self.first = time.monotonic()
            self.text += choice.delta.content or ""
            content = choice.logprobs.content if choice.logprobs else None
            self.rows += [[top.logprob for top in one.top_logprobs] for one in content or ()]

    def answer(self, task: str, arm: Arm, item: Item, guided: bool) -> Answer:
        end = time.monotonic()
        entropies = [entropy(row) for row in self.rows]
        trace = self.account.get("trace", ())
        return Answer(
            task=task,
            arm=arm.name,
            item=item.id,
            text=self.text,
            right=None,
            tokens=self.tokens,
            guided=guided,
            seconds=end - self.begin,
            first_s=(self.first or end) - self.begin,
            rows=2 if self.account.get("guide_prompt_tokens") else 1,
            means={k: v for k, v in self.account.get("mean", {}).items() if v is not None},
            applied=self.account.get("applied_steps"),
            kls=divergences(trace),
            swapped=swapped(trace) if trace else None,
            entropy=sum(entropies) / len(entropies) if entropies else None,
            likeliest=[[round(value, 4) for value in row] for row in self.rows]
            if arm.sampled and not arm.decoding
            else [],
        )
