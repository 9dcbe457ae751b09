"""The modules for LlamaIndex and LiteLLM need neither: stand-ins have what the packages keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

from divserve.client import litellm, llama_index

ENTRIES: list[dict[str, Any]] = [{"token": "a", "token_id": 1}, {"token": "b", "token_id": 2}]
ACCOUNT = {"method": "cad", "applied_steps": 2}


def chunk(text: str, **account: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "decoding": account}]}


CHUNKS = [chunk("a", trace=ENTRIES[:1]), chunk("b", trace=ENTRIES[1:], **ACCOUNT)]


class Stream:
    """The openai client's stream, in both kinds; ``closed`` tells of `close`."""

    def __init__(self) -> None:
        self.left, self.closed = list(CHUNKS), False

    def __next__(self) -> Any:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)

    async def __anext__(self) -> Any:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

    def close(self) -> None:
        self.closed = True


class Wrapper:
    """LiteLLM's stream: it keeps text alone."""

    def __init__(self) -> None:
        self.completion_stream: Any = Stream()

    def __iter__(self) -> Iterator[str]:
        return (chunk["choices"][0]["delta"]["content"] for chunk in self.completion_stream)

    async def __aiter__(self) -> AsyncIterator[str]:
        async for chunk in self.completion_stream:
            yield chunk["choices"][0]["delta"]["content"]


def check(account: Any) -> None:
    assert (account.method, account.applied_steps) == ("cad", 2)
    assert [token.token for token in account.trace] == ["a", "b"]


def test_llama_index() -> None:
    whole = SimpleNamespace(raw={"choices": [{"decoding": {**ACCOUNT, "trace": ENTRIES}}]})
    check(llama_index.account(whole))
    assert llama_index.account(SimpleNamespace(raw={"choices": [{}]})) is None
    found = llama_index.collected(SimpleNamespace(raw=chunk) for chunk in CHUNKS)
    assert found.texts == ["ab"]
    check(found.accounts[0])


def test_an_answer_of_litellm() -> None:
    own = {"decoding": {**ACCOUNT, "trace": ENTRIES}}
    check(litellm.account({"choices": [{"provider_specific_fields": own}]}))
    check(litellm.account({"choices": [own]}))
    assert litellm.account({"choices": [{"provider_specific_fields": None}]}) is None


def test_a_stream_of_litellm() -> None:
    stream = Wrapper()
    below = stream.completion_stream
    watched = litellm.watch(stream)
    assert "".join(stream) == "ab"
    check(watched.result().accounts[0])
    stream.completion_stream.close()
    assert below.closed


def test_an_asynchronous_stream_of_litellm() -> None:
    stream = Wrapper()
    watched = litellm.watch(stream)

    async def read() -> str:
        return "".join([text async for text in stream])

    assert asyncio.run(read()) == "ab"
    check(watched.result().accounts[0])
