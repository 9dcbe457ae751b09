"""Asks a server through a client of another project; runs where that client is installed.

    python -m tests.client.real CLIENT ADDRESS MODEL

prints one line of JSON: the version, and for each way of asking the text, the steps of the account
and the entries of its trace. Nothing here needs vLLM or pytest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from divserve.client import accounts, collect, decoding

DOCUMENT = "The capital of France is Lyon."
TEXT = f"{DOCUMENT} What is the capital of France?"
ASK: list[dict[str, str]] = [{"role": "user", "content": TEXT}]
BODY = decoding("cad", guide={"without": DOCUMENT}, trace=True)
FINAL = decoding("cad", guide={"without": DOCUMENT}, trace="final")
TOKENS = 24
KEY = os.environ.get("OPENAI_API_KEY", "none")

Told = dict[str, tuple[Any, Any]]
"""A text and its account, as an object or as JSON, by the way of asking."""


def told(text: Any, account: Any) -> dict[str, Any]:
    """What is printed of an answer."""
    if account is None:
        return {"text": str(text), "steps": None, "entries": 0}
    found = account if isinstance(account, dict) else account.model_dump()
    steps, trace = found.get("applied_steps"), found.get("trace") or ()
    return {"text": str(text), "steps": steps, "entries": len(trace)}


def summed(stream: Any) -> tuple[Any, Any]:
    """Of a stream that has one answer."""
    found = collect(stream)
    return found.texts[0], found.accounts[0]


def openai(url: str, model: str) -> Told:
    import openai as package

    client = package.OpenAI(base_url=url, api_key=KEY)
    fields: Any = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": TOKENS}
    chat = client.chat.completions
    whole = chat.create(**fields, extra_body=BODY)
    found: Told = {
        "create": (whole.choices[0].message.content, accounts(whole)[0]),
        "create, stream": summed(chat.create(**fields, extra_body=BODY, stream=True)),
    }
    with chat.stream(**fields, extra_body=BODY) as stream:
        found["helper's events"] = summed(stream)
        final: Any = stream.get_final_completion()
    found["helper's final answer"] = (final.choices[0].message.content, accounts(final)[0])
    return found


def openai_responses(url: str, model: str) -> Told:
    import openai as package

    client = package.OpenAI(base_url=url, api_key=KEY)
    fields: Any = {
        "model": model, "input": TEXT, "temperature": 0, "max_output_tokens": TOKENS,
        "store": False, "extra_body": BODY,
    }  # fmt: skip
    whole = client.responses.create(**fields)
    found: Told = {
        "create": (whole.output_text, accounts(whole)[0]),
        "create, stream": summed(client.responses.create(**fields, stream=True)),
    }
    with client.responses.stream(**fields) as stream:
        found["helper's events"] = summed(stream)
        final: Any = stream.get_final_response()
    found["helper's final answer"] = (final.output_text, accounts(final)[0])
    return found


def anthropic(url: str, model: str) -> Told:
    import anthropic as package

    client = package.Anthropic(base_url=url.removesuffix("/v1"), api_key=KEY)
    fields: Any = {"model": model, "messages": ASK, "max_tokens": TOKENS}
    # This package's methods have no temperature.
    fields["extra_body"] = {**BODY, "temperature": 0}
    whole: Any = client.messages.create(**fields)
    found: Told = {
        "create": (whole.content[0].text, accounts(whole)[0]),
        "create, stream": summed(client.messages.create(**fields, stream=True)),
    }
    with client.messages.stream(**fields) as stream:
        found["helper's events"] = summed(stream)
        final: Any = stream.get_final_message()
    found["helper's final answer"] = (final.content[0].text, accounts(final)[0])
    return found


def langchain(url: str, model: str) -> Told:
    from divserve.client.langchain import ChatDivserve

    chat = ChatDivserve(
        model=model, base_url=url, api_key=KEY, temperature=0, max_tokens=TOKENS, extra_body=BODY
    )

    async def asynchronous() -> tuple[Any, Any]:
        return await chat.ainvoke(TEXT), added([chunk async for chunk in chat.astream(TEXT)])

    def added(chunks: Any) -> Any:
        first, *others = chunks
        return sum(others, first)

    whole, streamed = asyncio.run(asynchronous())
    # With a format LangChain asks through other helpers of the openai client.
    formatted = chat.bind(response_format={"type": "text"})
    answers = {
        "invoke": chat.invoke(TEXT),
        "stream": added(chat.stream(TEXT)),
        "ainvoke": whole,
        "astream": streamed,
        "invoke, response_format": formatted.invoke(TEXT),
        "stream, response_format": added(formatted.stream(TEXT)),
    }
    return {
        name: (answer.content, answer.response_metadata.get("decoding"))
        for name, answer in answers.items()
    }


def pydantic_ai(url: str, model: str) -> Told:
    from pydantic_ai import Agent
    from pydantic_ai.providers.openai import OpenAIProvider

    from divserve.client.pydantic_ai import DivserveModel

    served = DivserveModel(model, provider=OpenAIProvider(base_url=url, api_key=KEY))
    settings: Any = {"temperature": 0, "max_tokens": TOKENS, "extra_body": BODY}
    agent = Agent(served, model_settings=settings)

    async def both() -> Told:
        whole = await agent.run(TEXT)
        async with agent.run_stream(TEXT) as stream:
            text = await stream.get_output()
        answers = {"run": (whole.output, whole), "run_stream": (text, stream)}
        return {
            name: (said, (run.all_messages()[-1].provider_details or {}).get("decoding"))
            for name, (said, run) in answers.items()
        }

    return asyncio.run(both())


def llama_index(url: str, model: str) -> Told:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    from divserve.client.llama_index import account, collected

    llm = OpenAILike(
        model=model, api_base=url, api_key=KEY, is_chat_model=True, temperature=0,
        max_tokens=TOKENS, additional_kwargs={"extra_body": BODY},
    )  # fmt: skip
    asked = [ChatMessage(role="user", content=TEXT)]
    whole = llm.chat(asked)
    streamed = collected(llm.stream_chat(asked))
    return {
        "chat": (whole.message.content, account(whole)),
        "stream_chat": (streamed.texts[0], streamed.accounts[0]),
    }


def litellm(url: str, model: str) -> Told:
    import litellm as package

    from divserve.client.litellm import account, watch

    fields: Any = {
        "model": f"openai/{model}", "api_base": url, "api_key": KEY, "messages": ASK,
        "temperature": 0, "max_tokens": TOKENS, "extra_body": BODY,
    }  # fmt: skip
    whole = package.completion(**fields)
    found: Told = {"completion": (whole.choices[0].message.content, account(whole))}

    stream = package.completion(**fields, stream=True)
    watched = watch(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    found["completion, stream"] = (text, watched.result().accounts[0])

    async def asynchronous() -> tuple[Any, Any]:
        stream = await package.acompletion(**fields, stream=True)
        watched = watch(stream)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return text, watched.result().accounts[0]

    found["acompletion, stream"] = asyncio.run(asynchronous())
    for name, body in {"chunks alone": BODY, "chunks alone, final": FINAL}.items():
        stream = package.completion(**{**fields, "extra_body": body}, stream=True)
        chunks = [chunk.model_dump() for chunk in stream]
        kept = [x["choices"][0].get("decoding") or {} for x in chunks]
        text = "".join(x["choices"][0]["delta"]["content"] or "" for x in chunks)
        found[name] = (text, {"trace": [entry for x in kept for entry in x.get("trace", ())]})
    return found


def dspy(url: str, model: str) -> Told:
    import dspy as package

    from divserve.client.litellm import account

    lm = package.LM(
        f"openai/{model}", api_base=url, api_key=KEY, temperature=0, max_tokens=TOKENS,
        cache=False, extra_body=BODY,
    )  # fmt: skip
    (text, *_) = lm(TEXT)
    return {"LM": (text, account(lm.history[-1]["response"]))}


CLIENTS: dict[str, tuple[str, Callable[[str, str], Told]]] = {
    "openai": ("openai", openai),
    "openai_responses": ("openai", openai_responses),
    "anthropic": ("anthropic", anthropic),
    "langchain": ("langchain-openai", langchain),
    "pydantic_ai": ("pydantic-ai-slim", pydantic_ai),
    "llama_index": ("llama-index-llms-openai-like", llama_index),
    "litellm": ("litellm", litellm),
    "dspy": ("dspy", dspy),
}
"""By name: the distribution, and what asks with it."""

if __name__ == "__main__":
    name, url, model = sys.argv[1:]
    distribution, ask = CLIENTS[name]
    answers = {way: told(*answer) for way, answer in ask(url, model).items()}
    print(json.dumps({"version": metadata.version(distribution), "answers": answers}))  # noqa: T201
