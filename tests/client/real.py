"""Asks a server through a client of another project; runs where that client is installed.

    python -m tests.client.real CLIENT ADDRESS MODEL

prints one line of JSON: the version, and for a whole answer and a streamed one the text, the steps
of the account and the entries of its trace. Nothing here needs vLLM or pytest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from divserve.client import accounts, collect, decoding

DOCUMENT = "The capital of France is Lyon."
TEXT = f"{DOCUMENT} What is the capital of France?"
ASK: list[dict[str, str]] = [{"role": "user", "content": TEXT}]
BODY = decoding("cad", guide={"without": DOCUMENT}, trace=True)
TOKENS = 24

Told = tuple[str, Any]
"""A text and its account, as an object or as JSON."""


def told(text: Any, account: Any) -> dict[str, Any]:
    """What is printed of an answer."""
    if account is None:
        return {"text": str(text), "steps": None, "entries": 0}
    found = account if isinstance(account, dict) else account.model_dump()
    steps, trace = found.get("applied_steps"), found.get("trace") or ()
    return {"text": str(text), "steps": steps, "entries": len(trace)}


def openai(url: str, model: str) -> Sequence[Told]:
    import openai as package

    client = package.OpenAI(base_url=url, api_key=KEY)
    fields: Any = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": TOKENS}
    whole = client.chat.completions.create(**fields, extra_body=BODY)
    streamed = collect(client.chat.completions.create(**fields, extra_body=BODY, stream=True))
    with client.chat.completions.stream(**fields, extra_body=BODY) as stream:
        helper: Any = stream.get_final_completion()
    return [
        (str(whole.choices[0].message.content), accounts(whole)[0]),
        (streamed.texts[0], streamed.accounts[0]),
        (helper.choices[0].message.content, accounts(helper)[0]),
    ]


def anthropic(url: str, model: str) -> Sequence[Told]:
    import anthropic as package

    client = package.Anthropic(base_url=url.removesuffix("/v1"), api_key=KEY)
    fields: Any = {"model": model, "messages": ASK, "max_tokens": TOKENS, "extra_body": BODY}
    whole = client.messages.create(**fields)
    streamed = collect(client.messages.create(**fields, stream=True))
    with client.messages.stream(**fields) as stream:
        helper = stream.get_final_message()
    return [
        (whole.content[0].text, accounts(whole)[0]),
        (streamed.texts[0], streamed.accounts[0]),
        (helper.content[0].text, accounts(helper)[0]),
    ]


def langchain(url: str, model: str) -> Sequence[Told]:
    from divserve.client.langchain import ChatDivserve

    chat = ChatDivserve(
        model=model, base_url=url, api_key=KEY, temperature=0, max_tokens=TOKENS, extra_body=BODY
    )
    whole = chat.invoke(TEXT)
    chunks = list(chat.stream(TEXT))
    streamed = chunks[0]
    for chunk in chunks[1:]:
        streamed += chunk
    return [(each.content, each.response_metadata.get("decoding")) for each in (whole, streamed)]


def pydantic_ai(url: str, model: str) -> Sequence[Told]:
    from pydantic_ai import Agent
    from pydantic_ai.providers.openai import OpenAIProvider

    from divserve.client.pydantic_ai import DivserveModel

    served = DivserveModel(model, provider=OpenAIProvider(base_url=url, api_key=KEY))
    settings: Any = {"temperature": 0, "max_tokens": TOKENS, "extra_body": BODY}
    agent = Agent(served, model_settings=settings)

    async def both() -> list[Told]:
        whole = await agent.run(TEXT)
        async with agent.run_stream(TEXT) as stream:
            text = await stream.get_output()
        answers = (whole.all_messages()[-1], stream.all_messages()[-1])
        found = [(answer.provider_details or {}).get("decoding") for answer in answers]
        return list(zip((whole.output, text), found, strict=True))

    return asyncio.run(both())


def llama_index(url: str, model: str) -> Sequence[Told]:
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
    return [
        (whole.message.content, account(whole)),
        (streamed.texts[0], streamed.accounts[0]),
    ]


def litellm(url: str, model: str) -> Sequence[Told]:
    import litellm as package
    from divserve.client.litellm import account, collected

    fields: Any = {
        "model": f"openai/{model}", "api_base": url, "api_key": KEY, "messages": ASK,
        "temperature": 0, "max_tokens": TOKENS, "extra_body": BODY,
    }  # fmt: skip
    whole = package.completion(**fields)
    streamed = collected(package.completion(**fields, stream=True))
    return [
        (whole.choices[0].message.content, account(whole)),
        (streamed.texts[0], streamed.accounts[0]),
    ]


CLIENTS: dict[str, tuple[str, Callable[[str, str], Sequence[Told]]]] = {
    "openai": ("openai", openai),
    "anthropic": ("anthropic", anthropic),
    "langchain": ("langchain-openai", langchain),
    "pydantic_ai": ("pydantic-ai-slim", pydantic_ai),
    "llama_index": ("llama-index-llms-openai-like", llama_index),
    "litellm": ("litellm", litellm),
}
"""By name: the distribution, and what asks with it."""

KEY = os.environ.get("OPENAI_API_KEY", "none")

if __name__ == "__main__":
    name, url, model = sys.argv[1:]
    distribution, ask = CLIENTS[name]
    answers = [told(*answer) for answer in ask(url, model)]
    print(json.dumps({"version": metadata.version(distribution), "answers": answers}))  # noqa: T201
