"""Sends one request and times its stream.

It uses urllib3 rather than locust's own clients, which time until the headers or until the end and
fire their own event for it. Under locust the sockets are gevent's.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import urllib3

from loadtest.sample import Sample
from loadtest.sse import Answer

__all__ = ["API_KEY", "Client"]

API_KEY = "DIVSERVE_API_KEY"
"""Environment variable: a key on the command line would show in the process list."""


class Client:
    """One user's connection to a server."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY):
            self._headers["Authorization"] = f"Bearer {key}"
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=10, read=timeout_s), retries=False
        )

    def model(self) -> str:
        """Name of the first served model."""
        answer = self._pool.request("GET", f"{self._url}/v1/models", headers=self._headers)
        if answer.status != 200:
            raise RuntimeError(f"{self._url}/v1/models answers {answer.status}")
        return str(answer.json()["data"][0]["id"])

    def ask(self, kind: str, body: dict[str, Any]) -> Sample:
        """Streams a chat completion."""
        began, start = time.time(), time.perf_counter()
        answer = Answer(kind)
        retry_after = None
        try:
            response = self._pool.request(
                "POST",
                f"{self._url}/v1/chat/completions",
                body=json.dumps(body).encode(),
                headers=self._headers,
                preload_content=False,
            )
            try:
                if response.status == 200:
                    for received in response.stream():
                        answer.feed(received, time.perf_counter() - start)
                    error = answer.fault()
                else:
                    error = f"HTTP {response.status}: {_message(response.data)}"
                    if response.status == 429:
                        retry_after = _seconds(response.headers.get("Retry-After"))
                        error = "" if retry_after is not None else "429 without Retry-After"
            except BaseException:
                response.close()
                raise
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as problem:
            error = f"connection: {type(problem).__name__}"
        return Sample(
            kind=kind,
            began=began,
            took=time.perf_counter() - start,
            outcome="failed" if error else "rejected" if retry_after is not None else "ok",
            error=error,
            chunks=answer.chunks,
            prompt_tokens=answer.prompt_tokens,
            retry_after=retry_after,
        )


def _message(data: bytes) -> str:
    """The server's own error message, if it answers as OpenAI does."""
    try:
        return str(json.loads(data)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
