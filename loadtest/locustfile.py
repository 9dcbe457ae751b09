"""Locust users that stream chat completions, plain and guided.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 \
        --users 8 --run-time 5m --stop-timeout 60 --shape step --guided-share 0.5

Every answer fires TTFT, ITL (once per token), TPOT and E2E, by kind of request, and writes a line
to ``samples-PID.jsonl`` under ``--out``, from which ``loadtest.report`` draws. A rejection (429
with Retry-After) fires its own event REJECTED and is not a failure.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any, TextIO

import gevent
import gevent.pool
from locust import LoadTestShape, User, events, task
from locust.runners import WorkerRunner

from loadtest import settings
from loadtest.client import Client
from loadtest.mix import Prompts, body
from loadtest.sample import Sample
from loadtest.shapes import users_at

UNANSWERED = "still under way long after the end"

_numbers = itertools.count()


def _size(options: Any) -> tuple[int, float]:
    """Maximum number of users, and seconds; locust's web page may be started without either."""
    return options.num_users or 8, options.run_time or 300


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("divserve load test")
    settings.add_arguments(group)
    group.add_argument("--out", default="loadtest/out", help="where samples go")


@events.test_start.add_listener
def _begin(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    # Opened in every process of a distributed run; only the master describes the run.
    environment.samples = (out / f"samples-{os.getpid()}.jsonl").open("w")
    if not isinstance(environment.runner, WorkerRunner):
        about = settings.values(options) | {"host": environment.host, "began": time.time()}
        about["users"], about["seconds"] = _size(options)
        (out / "run.json").write_text(json.dumps(about, indent=1))


@events.test_stop.add_listener
def _end(environment: Any, **_: Any) -> None:
    environment.samples.close()


class Shape(LoadTestShape):
    """The shape that ``--shape`` names, for ``--users`` and ``--run-time``."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now, and how many to start or stop per second."""
        options = self.runner.environment.parsed_options
        users, seconds = _size(options)
        now = users_at(options.shape, self.get_run_time(), users, seconds)
        return None if now is None else (now, float(users))


class Reader(User):
    """Asks, reads the whole answer, pauses; with ``--rate``, asks when the next request is due.

    Users that ask at random times, independently of each other, together form a Poisson process.
    """

    def on_start(self) -> None:
        """Gives each user a stream of random numbers, the same in every run."""
        self.options = self.environment.parsed_options
        self.told_to_wait = 0.0
        worker = getattr(self.environment.runner, "worker_index", 0)
        self.rng = random.Random(f"{self.options.seed} {worker} {next(_numbers)}")
        self.prompts = Prompts(Path(self.options.prompts), self.options.notes)
        self.mix = settings.mix(self.options)
        self.client = Client(self.host or self.environment.host, self.options.timeout)
        self.model = self.options.model or self.client.model()
        self.reading = gevent.pool.Pool()
        self.due = time.monotonic()
        if self.options.rate > 0:
            self.wait()

    def on_stop(self) -> None:
        """Lets the answers that no user waits for finish."""
        self.reading.join(timeout=self.environment.stop_timeout)
        self.reading.kill()

    def wait_time(self) -> float:
        """Seconds until the next request: a pause, or what the last rejection asked for."""
        if self.options.rate > 0:
            # From one due time to the next: the time that asking takes would lower the rate.
            self.due += self.rng.expovariate(self.options.rate / _size(self.options)[0])
            return float(max(0.0, self.due - time.monotonic()))
        think = self.options.think
        pause = self.rng.expovariate(1 / think) if think > 0 else 0.0
        return float(max(pause, self.told_to_wait))

    @task
    def ask(self) -> None:
        """One request."""
        kind = self.mix.kind(self.rng)
        request = body(
            self.model,
            kind,
            self.prompts.draw(self.rng),
            self.mix.max_tokens(self.rng),
            self.options.temperature,
            self.options.ignore_eos,
        )
        if self.options.rate > 0:
            # Each request is another client's, with its own connection.
            client = Client(self.host or self.environment.host, self.options.timeout)
            self.reading.spawn(self._answered, client, kind, request)
        else:
            self._answered(self.client, kind, request)

    def _answered(self, client: Client, kind: str, request: dict[str, Any]) -> None:
        began = time.time()
        try:
            sample = client.ask(kind, request)
        except gevent.GreenletExit:
            waited, patience = time.time() - began, self.environment.stop_timeout or math.inf
            # Without this, the longest waits would not count. But locust also kills users who were
            # about to ask when the time was over, and without --stop-timeout all users.
            if waited > patience / 2:
                sample = Sample(kind, began, waited, "failed", UNANSWERED)
                self._note(self.environment.samples, sample)
            raise
        self.told_to_wait = min(sample.retry_after or 0.0, self.options.max_wait)
        self._note(self.environment.samples, sample)

    def _note(self, file: TextIO, sample: Sample) -> None:
        file.write(sample.to_json() + "\n")
        file.flush()
        if sample.outcome == "failed":
            self._fire("E2E", sample, sample.took, RuntimeError(sample.error))
        elif sample.outcome == "rejected":
            self._fire("REJECTED", sample, sample.took)
        else:
            self._fire("TTFT", sample, sample.ttft)
            self._fire("TPOT", sample, sample.tpot)
            self._fire("E2E", sample, sample.took)
            for gap in sample.itl:
                self._fire("ITL", sample, gap)

    def _fire(
        self, name: str, sample: Sample, seconds: float | None, error: Exception | None = None
    ) -> None:
        if seconds is not None:
            self.environment.events.request.fire(
                request_type=name,
                name=sample.kind,
                response_time=1e3 * seconds,
                response_length=sample.tokens,
                exception=error,
                context={},
            )
