"""Starts `divserve serve` as a user does and asks it with the openai client: a line per check.

Every method that the server offers answers and accounts for each of its tokens; a stream is the
whole answer; bad input is refused; mixed requests leave nothing behind; SIGTERM ends the server.

    python -m bench.smoke MODEL [any flag of divserve serve]
    python -m bench.smoke .models/smollm2-135m-instruct --look-back --amateur drop:4
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai

from tests.support.chat import Streamed, account, chat, guided
from tests.support.server import API_KEY, STOP_TIMEOUT_S, gauges, get, serving

STORM = 192
"""Requests, a third of them plain."""
AT_ONCE = 48
IDLE_S = 15
"""Seconds within which the server's gauges must fall to 0."""
METRICS = ("divserve_unguided_steps_total", "divserve_kernel_seconds_sum")
LOOK_BACK_TOKENS = 200


class Smoke:
    """The checks, and those that have failed."""

    def __init__(self, url: str, client: openai.OpenAI) -> None:
        self.failed: list[str] = []
        self._url, self._client = url, client

    def run(self, name: str, check: Callable[[], object]) -> None:
        """Runs a check and prints what it returns or raises."""
        start = time.perf_counter()
        try:
            verdict, found = "PASS", str(check())
        except Exception as error:
            verdict, found = "FAIL", f"{type(error).__name__} {error}"
            self.failed.append(name)
        print(f"{verdict} {name}: {found[:240]} ({time.perf_counter() - start:.2f} s)", flush=True)

    def all(self) -> None:
        """Every check but the server's end."""
        self.run("plain", lambda: said(chat(self._client)))
        listed = json.loads(get(self._url, "/v1/decoding/methods"))["data"]
        for method in (entry["method"] for entry in listed if entry["available"]):
            self.run(method, partial(self._accounted, method))
        self.run("a stream is the whole answer", self._streamed)
        self.run("an unknown method is refused", self._refused)
        self.run(f"{STORM} mixed requests, {AT_ONCE} at once", self._storm)
        self.run("idle afterwards", self._idle)

    def _accounted(self, method: str) -> str:
        tokens = LOOK_BACK_TOKENS if method == "look_back" else 24
        answer = chat(self._client, body_of(method), max_tokens=tokens, temperature=0.7, seed=1)
        steps, report = answer.usage.completion_tokens, account(answer.choices[0])
        assert report["applied_steps"] == steps > 0, report
        return said(answer)

    def _streamed(self) -> str:
        whole = chat(self._client, guided("adacad")).choices[0].message.content
        streamed = Streamed(chat(self._client, guided("adacad"), stream=True)).text[0]
        assert streamed == whole, (streamed, whole)
        return str(whole)

    def _refused(self) -> str:
        try:
            chat(self._client, guided("nonsense"))
        except openai.BadRequestError as error:
            return str(error)
        raise AssertionError("it was answered")

    def _storm(self) -> str:
        kinds = (None, guided("adacad"), guided("kl_temperature"))
        start = time.perf_counter()

        def ask(number: int) -> int:
            body = kinds[number % len(kinds)]
            answer = chat(self._client, body, temperature=0.7, seed=number, max_tokens=48)
            return int(answer.usage.completion_tokens)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            tokens = sum(pool.map(ask, range(STORM)))
        return f"{tokens / (time.perf_counter() - start):.0f} tokens of answers a second"

    def _idle(self) -> str:
        deadline = time.perf_counter() + IDLE_S
        while any(gauges(self._url).values()):
            assert time.perf_counter() < deadline, gauges(self._url)
            time.sleep(0.2)
        lines = get(self._url, "/metrics").splitlines()
        found = [line for line in lines if line.startswith(METRICS)]
        unguided = [line for line in found if line.startswith(METRICS[0])]
        assert unguided
        assert all(float(line.split()[-1]) == 0 for line in unguided), unguided
        return "; ".join(found)


def body_of(method: str) -> dict[str, Any]:
    """A ``decoding`` object of any method."""
    from divserve.decoding import METHODS

    return guided(method) if METHODS[method].guided or method == "vdgd" else {"method": method}


def said(answer: Any) -> str:
    """The answer's text and its account."""
    choice = answer.choices[0]
    return f"{choice.message.content!r} {account(choice) or ''}"


def main(model: Path, flags: list[str]) -> int:
    """Runs all checks; returns how many have failed."""
    start = time.perf_counter()
    with (
        TemporaryDirectory() as folder,
        serving(model, Path(folder) / "log.txt", flags) as (url, process),
        openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, timeout=120) as client,
    ):
        print(f"ready after {time.perf_counter() - start:.1f} s", flush=True)
        smoke = Smoke(url, client)
        smoke.all()

        def stopped() -> str:
            process.terminate()
            assert process.wait(STOP_TIMEOUT_S) == 0, process.returncode
            return "exit status 0"

        smoke.run("it stops when asked", stopped)
        if smoke.failed:
            print((Path(folder) / "log.txt").read_text()[-4000:])
    return len(smoke.failed)


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), sys.argv[2:]), 1))
