"""A batch: questions about documents in a file, answered when the server has time.

    divserve serve MODEL --batch-dir batches
    python examples/batch.py

Needs divserve, openai, and that server (OPENAI_BASE_URL, by default 127.0.0.1:8000).
"""

from __future__ import annotations

import json
import os
import time

from openai import OpenAI

from divserve.client import accounts, with_document

CAPITALS = {"France": "Lyon", "Spain": "Bilbao", "Italy": "Turin"}

address = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
client = OpenAI(base_url=address, api_key=os.environ.get("OPENAI_API_KEY", "none"))
model = client.models.list().data[0].id
lines = []
for country, city in CAPITALS.items():
    asked = with_document(
        f"The capital of {country} is {city}.", f"What is the capital of {country}?", "adacad"
    )
    body = {"model": model, "messages": asked.messages, "temperature": 0, "max_tokens": 24}
    body |= asked.extra_body
    line = {"custom_id": country, "method": "POST", "url": "/v1/chat/completions", "body": body}
    lines.append(json.dumps(line))

file = client.files.create(file=("capitals.jsonl", "\n".join(lines).encode()), purpose="batch")
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
)
while batch.status in ("validating", "in_progress", "finalizing"):
    time.sleep(0.5)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.request_counts)
if batch.output_file_id:
    for text in client.files.content(batch.output_file_id).text.splitlines():
        found = json.loads(text)
        answer = found["response"]["body"]
        account = accounts(answer)[0]
        told = f"{account.method}, {account.applied_steps} tokens" if account else "plain"
        print(f"{found['custom_id']}: {answer['choices'][0]['message']['content']!r} ({told})")
