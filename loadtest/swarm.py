"""Runs locust, shows its progress, and monitors the server meanwhile."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest import settings
from loadtest.figures import Run
from loadtest.monitor import EVERY_S, Monitor
from loadtest.sample import Tail

__all__ = ["capacity", "swarm"]

ROOT = Path(__file__).parents[1]
LAST_ANSWERS_S = int(os.environ.get("DIVSERVE_LAST_ANSWERS_S", "60"))
"""How long answers still in progress may take when the time is over."""
REPORT_EVERY_S = 15
SETTLING = 0.25
"""Initial share of the calibration, in which the batch fills; it does not count."""


def swarm(
    url: str,
    given: argparse.Namespace,
    console: Console,
    *,
    pid: int | None = None,
    nice: int = 0,
    read_every_s: float = EVERY_S,
) -> int:
    """Runs the users that the arguments describe, who leave their samples in ``given.out``.

    Args:
        url: of the server.
        given: arguments parsed by ``loadtest.__main__.parser``.
        console: where the progress goes.
        pid: the server's process, if it runs on this machine.
        nice: niceness of the users, if they share the server's machine.
        read_every_s: pause between two readings of the server.

    Returns:
        locust's exit code: 1 if anything failed.
    """
    given.out.mkdir(parents=True, exist_ok=True)
    # The samples of an earlier test would be counted as this one's.
    for old in (given.out / "run.json", *given.out.glob("samples-*.jsonl")):
        old.unlink(missing_ok=True)
    seconds = round(60 * given.minutes)
    columns = (BarColumn(30), TextColumn("{task.description}"), TimeRemainingColumn())
    monitor = Monitor(url, pid, given.out, read_every_s)
    log = given.out / "locust.log"
    with log.open("w") as output, Progress(*columns, console=console) as progress:
        process = subprocess.Popen(
            ["nice", "-n", str(nice), *_command(url, given, seconds)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        task = progress.add_task("starting", total=seconds)
        begin = shown = time.monotonic()
        tail, counts = Tail(given.out), Counter[str]()
        try:
            while process.poll() is None:
                time.sleep(1)
                monitor.look()
                passed = time.monotonic() - begin
                for sample in tail.new():
                    counts[sample.outcome] += 1
                    counts["tokens"] += sample.tokens
                state = _state(counts, passed)
                progress.update(task, completed=min(passed, seconds), description=state)
                if not console.is_terminal and time.monotonic() - shown >= REPORT_EVERY_S:
                    shown = time.monotonic()
                    console.print(f"{passed:.0f} of {seconds} s: {state}")
        finally:
            process.terminate()
            process.wait()
    return process.returncode


def _command(url: str, given: argparse.Namespace, seconds: int) -> list[str]:
    command = [
        sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--host", url,
        "--users", str(given.users), "--run-time", f"{seconds}s", "--stop-timeout",
        str(LAST_ANSWERS_S), "--csv", str(given.out / "locust"), "--html",
        str(given.out / "locust.html"), "--only-summary", "--out", str(given.out),
        *settings.to_argv(given),
    ]  # fmt: skip
    if given.processes > 1:
        command += ["--processes", str(given.processes)]
    return command


def _state(counts: Counter[str], passed: float) -> str:
    names = [name for name in ("ok", "failed", "rejected") if counts[name] or name == "ok"]
    parts = [f"{counts[name]} {name}" for name in names]
    return f"{', '.join(parts)}, {counts['tokens'] / passed:.0f} tokens/s"


def capacity(run: Run) -> float:
    """Answers per second of a test whose users did not pause, without its beginning."""
    begin = SETTLING * run.seconds
    ended = [run.since_start(one) + one.took for one in run.samples if one.outcome == "ok"]
    return sum(begin <= at < run.seconds for at in ended) / (run.seconds - begin)
