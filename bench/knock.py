"""Sends a busy server one request after another on one connection, and times the answers.

    python -m bench.knock URL MODEL FILE

It is a separate process, so that a client that floods the server does not delay its clock. It runs
until it is terminated; each line of the file is a status and its milliseconds. A request that is
admitted hangs up at once; otherwise it would wait in the queue instead of probing it.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.client import API_KEY

__all__ = ["read"]

EVERY_S = 0.2
TIMEOUT_S = 60


def read(file: Path) -> dict[int, list[float]]:
    """Milliseconds of the answers, by status."""
    found: dict[int, list[float]] = {}
    for line in file.read_text().splitlines():
        status, took = line.split()
        found.setdefault(int(status), []).append(float(took))
    return found


def knock(url: str, model: str, file: Path) -> None:
    """Sends requests forever."""
    address = urlsplit(url)
    assert address.hostname
    door = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT_S)
    messages = [{"role": "user", "content": "?"}]
    # Streams answer 200 before they have a token.
    body = {"model": model, "messages": messages, "max_tokens": 1, "stream": True}
    data = json.dumps(body).encode()
    headers = {
        "Authorization": f"Bearer {os.environ.get(API_KEY, '')}",
        "Content-Type": "application/json",
    }
    door.connect()
    with file.open("w", buffering=1) as out:
        while True:
            start = time.perf_counter()
            door.request("POST", "/v1/chat/completions", data, headers)
            answer = door.getresponse()
            let_in = answer.status == 200
            if not let_in:
                answer.read()
            out.write(f"{answer.status} {1e3 * (time.perf_counter() - start):.3f}\n")
            if let_in:
                answer.close()
                door.close()
                door.connect()
            time.sleep(EVERY_S)


if __name__ == "__main__":
    knock(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
