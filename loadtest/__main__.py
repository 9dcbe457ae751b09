"""A load test from beginning to end: server, warm-up, users, report.

python -m loadtest --minutes 1 --users 8                  # starts SmolLM2, stops it after
python -m loadtest --url http://127.0.0.1:8000 --shape step --guided-share 1 --mix adacad
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest import report, settings
from loadtest.client import Client
from loadtest.mix import Prompts, body
from loadtest.sample import Sample, Tail

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "out"
LAST_ANSWERS_S = 60
"""How long answers that are under way may still take when the time is over."""
REPORT_EVERY_S = 15


def parser() -> argparse.ArgumentParser:
    """Our own arguments and the knobs of the users."""
    found = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    found.add_argument("--minutes", type=float, default=5.0, help="length of the test (default 5)")
    found.add_argument("--users", type=int, default=8, help="most users at a time (default 8)")
    found.add_argument("--url", help="a running server (default: a fresh one with SmolLM2)")
    found.add_argument("--serve", default="", help="more flags for the fresh server, in quotes")
    found.add_argument("--processes", type=int, default=1, help="locust processes (default 1)")
    found.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    found.add_argument(
        "--record",
        action="store_true",
        help="add the figures to bench/results.csv, draw docs/load.svg",
    )
    settings.add_arguments(found.add_argument_group("requests"))
    return found


@contextmanager
def server(given: argparse.Namespace, console: Console) -> Iterator[str]:
    """Address of the server under test."""
    if given.url:
        yield given.url
        return
    import os

    from loadtest.client import API_KEY
    from tests.support.models import SMOLLM2
    from tests.support.server import API_KEY as KEY
    from tests.support.server import serving

    console.print("→ starting a server with SmolLM2 (half a minute)")
    os.environ[API_KEY] = KEY
    flags = ["--served-model-name", SMOLLM2.name, *shlex.split(given.serve)]
    with serving(SMOLLM2, given.out / "server.log", flags) as (url, _):
        yield url


def warm_up(url: str, given: argparse.Namespace) -> None:
    """One request of each kind, so that a setting that cannot work is known at once.

    Raises:
        RuntimeError: one of them failed; says why.
    """
    client = Client(url, given.timeout)
    model, rng = given.model or client.model(), random.Random(-1)
    prompts = Prompts(Path(given.prompts), given.notes)
    for kind in settings.mix(given).kinds():
        asked = body(model, kind, prompts.draw(rng), 8, given.temperature, given.ignore_eos)
        if (sample := client.ask(kind, asked)).outcome == "failed":
            raise RuntimeError(f"{kind}: {sample.error}")


def swarm(url: str, given: argparse.Namespace, console: Console) -> int:
    """Runs locust and shows how it goes; returns its exit code (1 if anything failed)."""
    seconds = round(60 * given.minutes)
    command = [
        sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--host", url,
        "--users", str(given.users), "--run-time", f"{seconds}s", "--stop-timeout",
        str(LAST_ANSWERS_S), "--csv", str(given.out / "locust"), "--html",
        str(given.out / "locust.html"), "--only-summary", "--out", str(given.out),
        *settings.to_argv(given),
    ]  # fmt: skip
    if given.processes > 1:
        command += ["--processes", str(given.processes)]
    columns = (BarColumn(30), TextColumn("{task.description}"), TimeRemainingColumn())
    log = given.out / "locust.log"
    with log.open("w") as output, Progress(*columns, console=console) as progress:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        task = progress.add_task("starting", total=seconds)
        begin = shown = time.monotonic()
        tail, samples = Tail(given.out), list[Sample]()
        try:
            while process.poll() is None:
                time.sleep(1)
                passed = time.monotonic() - begin
                samples += tail.new()
                state = _state(samples, passed)
                progress.update(task, completed=min(passed, seconds), description=state)
                if not console.is_terminal and time.monotonic() - shown >= REPORT_EVERY_S:
                    shown = time.monotonic()
                    console.print(f"{passed:.0f} of {seconds} s: {state}")
        finally:
            process.terminate()
            process.wait()
    return process.returncode


def _state(samples: list[Sample], passed: float) -> str:
    counts = {
        name: sum(s.outcome == name for s in samples) for name in ("ok", "failed", "rejected")
    }
    parts = [f"{count} {name}" for name, count in counts.items() if count or name == "ok"]
    return f"{', '.join(parts)}, {sum(s.tokens for s in samples) / passed:.0f} tokens/s"


def main(argv: list[str] | None = None) -> int:
    """Runs the test; the exit code is 1 if a request failed, or nothing was asked."""
    given = parser().parse_args(argv)
    given.out = given.out.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    # The samples of an earlier test would count as this one's.
    for old in (given.out / "run.json", *given.out.glob("samples-*.jsonl")):
        old.unlink(missing_ok=True)
    console = Console(stderr=True)
    with server(given, console) as url:
        try:
            warm_up(url, given)
        except (RuntimeError, OSError, urllib3.exceptions.HTTPError) as error:
            console.print(f"the warm-up failed: {error}", markup=False, soft_wrap=True)
            return 1
        code = swarm(url, given, console)
    if not (given.out / "run.json").exists():
        console.print((given.out / "locust.log").read_text()[-2000:])
        return code or 1
    run = report.read(given.out)
    if not run.samples:
        console.print("nobody asked anything: see locust.log")
        return code or 1
    report.write(run, given.out)
    Console(width=140).print(report.table(run))
    for fault, count in run.errors().items():
        console.print(f"{count} × {fault}", markup=False)
    console.print(f"report in {given.out / 'report.html'}")
    if given.record:
        from bench import record

        command = " ".join(["python -m loadtest", *(sys.argv[1:] if argv is None else argv)])
        record.append("load", command, report.lines(run))
        shutil.copy(given.out / "report.svg", ROOT / "docs" / "load.svg")
    return code


if __name__ == "__main__":
    sys.exit(main())
