"""What the clients ask, and how the clients of OpenAI's and of Anthropic's own API ask it."""

from __future__ import annotations

import os
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
