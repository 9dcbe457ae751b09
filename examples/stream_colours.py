"""A streamed answer in the terminal: the more the document decides a token, the redder it is.

    python examples/stream_colours.py

Needs divserve, rich, openai, and a server (OPENAI_BASE_URL, by default 127.0.0.1:8000).
"""

from __future__ import annotations

import os

from openai import OpenAI
from rich.console import Console
from rich.text import Text

from divserve.client import Collector, with_document

DOCUMENT = "Since January, the Mona Lisa hangs in the Prado in Madrid."
QUESTION = "In which museum does the Mona Lisa hang?"
LARGEST = 0.693
"""Nats: no Jensen-Shannon divergence is larger."""

console = Console(highlight=False)
address = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
client = OpenAI(base_url=address, api_key=os.environ.get("OPENAI_API_KEY", "none"))
asked = with_document(DOCUMENT, QUESTION, "adacad", trace=True)
collector = Collector()
with client.chat.completions.create(
    model=client.models.list().data[0].id, temperature=0, max_tokens=48, stream=True, **asked
) as stream:
    for chunk in stream:
        for step in collector.add(chunk):
            # The token that ends the answer is in the trace, and not in its text.
            if step.token in (chunk.choices[0].delta.content or ""):
                red = round(min(step.figure("jsd") or 0.0, LARGEST) / LARGEST * 255)
                style = f"rgb({red},{160 - red // 2},{255 - red})"
                console.print(Text(step.token, style=style), end="")
console.print()
answer = collector.result()
if account := answer.accounts[0]:
    console.print(
        f"{account.method}, {account.applied_steps} tokens, {dict(account.mean)}", style="dim"
    )
