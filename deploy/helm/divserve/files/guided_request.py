"""One guided request to a running server: every token must have been decoded by the method.

The pod of `helm test` runs it; it requires only Python, so you can run it too:
URL=http://127.0.0.1:8000 python guided_request.py
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

URL = os.environ["URL"]
TIMEOUT_S = float(os.environ.get("TIMEOUT", "120"))
HEADERS = {"Content-Type": "application/json"}


def first_key(file: Path) -> str:
    """The first key of a file for --api-key-file, without the key's name."""
    lines = (line.partition(" #")[0].strip() for line in file.read_text("utf-8").splitlines())
    key = next(line for line in lines if line and not line.startswith("#"))
    return key.partition(":")[2].strip() or key


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON answer of a GET, or of a POST of `body`."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, HEADERS)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def wait_until_ready() -> None:
    """Returns once /ready answers 200."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(f"{URL}/ready", timeout=5).close()
        except (OSError, urllib.error.HTTPError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"not ready: {error}")
            time.sleep(2)
        else:
            return


if keys := os.environ.get("API_KEY_FILE"):
    HEADERS["Authorization"] = f"Bearer {first_key(Path(keys))}"
wait_until_ready()
model = ask("/v1/models")["data"][0]["id"]
answer = ask(
    "/v1/completions",
    {
        "model": model,
        "prompt": "The Eiffel Tower now stands in Berlin. The Eiffel Tower stands in",
        "max_tokens": 8,
        "temperature": 0,
        "decoding": {
            "method": "adacad",
            "guide": {"without": "The Eiffel Tower now stands in Berlin. "},
        },
    },
)
choice, tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
if choice["decoding"]["applied_steps"] != tokens:
    sys.exit(f"{tokens} tokens, but {choice['decoding']}")
sys.stdout.write(f"{model}: {tokens} tokens, all guided: {choice['text']!r}\n")
