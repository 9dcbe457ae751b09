"""Asks a server through a client of another project; runs where that client is installed.

    python -m tests.client.real CLIENT ADDRESS MODEL

prints one line of JSON: the version, and for each way of asking the text, the steps of the account
and the entries of its trace. Nothing here needs vLLM or pytest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from tests.client import asking, frameworks

Ask = Callable[[str, str], asking.Told]

CLIENTS: dict[str, tuple[str, Ask]] = {
    "openai": ("openai", asking.openai),
    "openai_responses": ("openai", asking.openai_responses),
    "anthropic": ("anthropic", asking.anthropic),
    "langchain": ("langchain-openai", frameworks.langchain),
    "pydantic_ai": ("pydantic-ai-slim", frameworks.pydantic_ai),
    "llama_index": ("llama-index-llms-openai-like", frameworks.llama_index),
    "litellm": ("litellm", frameworks.litellm),
    "dspy": ("dspy", frameworks.dspy),
}
"""By name: the distribution, and what asks with it."""


def told(text: Any, account: Any) -> dict[str, Any]:
    """What is printed of an answer."""
    if account is None:
        return {"text": str(text), "steps": None, "entries": 0}
    found = account if isinstance(account, dict) else account.model_dump()
    steps, trace = found.get("applied_steps"), found.get("trace") or ()
    return {"text": str(text), "steps": steps, "entries": len(trace)}


if __name__ == "__main__":
    name, url, model = sys.argv[1:]
    distribution, ask = CLIENTS[name]
    answers = {way: told(*answer) for way, answer in ask(url, model).items()}
    print(json.dumps({"version": metadata.version(distribution), "answers": answers}))  # noqa: T201
