"""LiteLLM: the account of an answer, and of a stream with the chunks that LiteLLM drops.

``completion(…, extra_body=decoding(…))``. LiteLLM makes a finishing chunk of its own, which lacks
the account and, with ``"trace": "final"``, the trace: `watch` reads what LiteLLM reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from divserve.client.accounts import Account, accounts, plain
from divserve.client.collect import Collector

__all__ = ["account", "watch"]


def account(response: Any) -> Account | None:
    """The account of a ``ModelResponse`` or ``TextCompletionResponse``; None for a plain answer."""
    (choice, *_) = plain(response)["choices"]
    return accounts({"choices": [{**choice, **(choice.get("provider_specific_fields") or {})}]})[0]


def watch(stream: Any) -> Collector:
    """Call it before the first chunk; when the stream has been read, ``result()`` has it all.

    Args:
        stream: of ``completion(…, stream=True)`` or ``await acompletion(…, stream=True)``.
    """
    collector = Collector()
    stream.completion_stream = _Watched(stream.completion_stream, collector)
    return collector


@dataclass(slots=True)
class _Watched:
    """The stream of the ``openai`` client below; its other methods close it."""

    stream: Any
    collector: Collector

    def __iter__(self) -> _Watched:
        return self

    def __next__(self) -> Any:
        return self._seen(next(self.stream))

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        return self._seen(await anext(self.stream))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _seen(self, chunk: Any) -> Any:
        self.collector.add(chunk)
        return chunk
