"""Retrieval: a small vector store, and an answer that follows the text that it finds.

    python examples/rag.py "How much is the bus to the airport?"

Needs divserve, numpy, openai, and a server (OPENAI_BASE_URL, by default 127.0.0.1:8000). Texts
become vectors by hashing their words; an embedding model takes the place of `embed`.
"""

from __future__ import annotations

import os
import re
import sys
import zlib

import numpy as np
from openai import OpenAI

from divserve.client import accounts, with_document

TEXTS = [
    "Since May, the bus to the airport costs 9 crowns and leaves every 12 minutes.",
    "The library is closed on Tuesdays. Books can be returned at the side door.",
    "The swimming pool has moved to Harbour Street 4 and opens at six in the morning.",
    "Dogs are allowed in the park from October to April.",
]
FREQUENT = {"the", "is", "to", "in", "at", "and", "how", "much", "what", "when", "where", "of"}


def embed(text: str, size: int = 512) -> np.ndarray:
    """A vector of length 1: one place for the first letters of each word."""
    vector = np.zeros(size)
    for word in set(re.findall(r"[a-z]+", text.lower())) - FREQUENT:
        vector[zlib.crc32(word[:5].encode()) % size] += 1
    return vector / max(float(np.linalg.norm(vector)), 1.0)


question = sys.argv[1] if len(sys.argv) > 1 else "How much is the bus to the airport?"
store = np.stack([embed(text) for text in TEXTS])
found = TEXTS[int(np.argmax(store @ embed(question)))]
address = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
client = OpenAI(base_url=address, api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
asked = with_document(found, question, "adacad")
answer = client.chat.completions.create(model=model, temperature=0, max_tokens=48, **asked)
account = accounts(answer)[0]
print(f"found:   {found}\nanswer:  {answer.choices[0].message.content}")
print(f"account: {account.model_dump_json()}" if account else "decoded plainly")
