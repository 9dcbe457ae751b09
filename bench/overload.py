"""What happens to goodput when ten times as many requests arrive as a server can answer.

For each queue bound, a fresh server gets requests at rising rates (open loop, Poisson, the load
test's mix of plain and guided chats). Goodput is answers per second within the load test's limits
of TTFT and TPOT. The best rate is run once more, because the best of several runs is a lucky one,
and then ten times that rate. Rejected clients do not retry. Meanwhile another process
(`bench.knock`) times rejections. Clients and server share the machine; the clients are niced.

    python -m bench.overload --record         # SmolLM2, two bounds, about 25 minutes
    python -m bench.overload --model tiny --queue 4 --seconds 5
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench import knock
from loadtest import record, report
from loadtest.__main__ import parser, warm_up
from loadtest.client import API_KEY, Client
from loadtest.figures import Run, percentile
from loadtest.swarm import capacity, swarm
from tests.support.models import ROOT, SMOLLM2, make_tiny
from tests.support.server import API_KEY as KEY
from tests.support.server import serving

SHARES = (0.5, 0.7, 0.85, 1.0, 1.2, 2.0)
"""Rates that are tried, as shares of the answers per second that users without pauses get."""
FLOOD = 10
LONG = 3
"""The two runs whose goodput is compared are this many times as long as the others."""
NICE = 5
READ_EVERY_S = 2.0
USERS = 8
"""Arrival processes; each is a Poisson process, and so is their sum."""

console = Console(stderr=True)


@dataclass(frozen=True)
class Point:
    """One rate of requests, and its results."""

    name: str
    rate: float
    run: Run
    knocks: dict[int, list[float]]

    @property
    def came(self) -> float:
        """Requests per second that were actually sent: a starved client falls behind its rate."""
        return self.run.summaries()[0].asked / self.run.seconds

    @property
    def good(self) -> float:
        """Answers per second within the limits."""
        return self.run.summaries()[0].good_per_s

    @property
    def rows(self) -> float:
        """The largest number of rows that the engine had, running and waiting."""
        return max((one.running or 0) + (one.waiting or 0) for one in self.run.readings)


class Server:
    """A server under test.

    Args:
        url: its address.
        out: folder of this server's runs.
        seconds: length of each run.
    """

    def __init__(self, url: str, out: Path, seconds: float) -> None:
        self.url, self.out, self.seconds = url, out, seconds
        self._seeds = itertools.count()
        self.model = Client(url, 60).model()
        warm_up(url, self._arguments("warm-up", 0))

    def _arguments(
        self, name: str, rate: float, users: int = USERS, rounds: int = 1
    ) -> argparse.Namespace:
        # The same seed would repeat the same prompts, which the prefix cache would hold.
        knobs = {"rate": rate, "users": users, "think": 0, "seed": next(self._seeds)}
        argv = [f"--{key}={value}" for key, value in knobs.items()]
        return parser().parse_args(
            [*argv, f"--minutes={rounds * self.seconds / 60}", f"--out={self.out / name}"]
        )

    def capacity(self, users: int) -> float:
        """Answers per second to users without pauses."""
        given = self._arguments("capacity", 0, users)
        swarm(self.url, given, console, nice=NICE)
        return capacity(report.read(given.out))

    def ask(self, name: str, rate: float, rounds: int = 1) -> Point:
        """Sends requests at a rate, for `rounds` times the usual length."""
        console.print(f"→ {self.out.name}, {name}: {rate:.2f} requests/s")
        given = self._arguments(name, rate, rounds=rounds)
        given.out.mkdir(parents=True)
        with self._knocking(given.out / "knocks") as knocks:
            swarm(self.url, given, console, nice=NICE, read_every_s=READ_EVERY_S)
        return Point(name, rate, report.read(given.out), knock.read(knocks))

    @contextmanager
    def _knocking(self, file: Path) -> Iterator[Path]:
        command = [sys.executable, "-m", "bench.knock", self.url, self.model, str(file)]
        with subprocess.Popen(command, cwd=ROOT) as process:
            try:
                yield file
            finally:
                process.terminate()


def measure(server: Server, capacity: float) -> list[Point]:
    """Runs every rate, the best of them again, and the flood."""
    points = [server.ask(f"{share:g} of capacity", share * capacity) for share in SHARES]
    best = max(points, key=lambda point: point.good)
    points.append(server.ask("peak", best.rate, LONG))
    points.append(server.ask("flood", FLOOD * best.rate, LONG))
    return points


def figures(case: str, bound: int, points: list[Point]) -> list[dict[str, str]]:
    """The figures as lines of bench/results.csv."""
    *_, peak, flood = points
    found = []

    def note(metric: str, value: str, spread: str = "") -> None:
        found.append({"case": case, "metric": metric, "value": value, "spread": spread})

    for one in points:
        everyone = one.run.summaries()[0]
        note(f"{one.name}: requests/s", f"{one.came:.2f}", _outcomes(one))
        spread = "TTFT ms p50, p95: {:.0f}, {:.0f}; TPOT ms p50, p95: {:.0f}, {:.0f}".format(
            *(1e3 * everyone.at(name, share) for name in ("ttft", "tpot") for share in (0.5, 0.95))
        )
        note(f"{one.name}: good answers/s", f"{one.good:.2f}", spread)
    ratio, counts = flood.good / peak.good, [one.good * one.run.seconds for one in (peak, flood)]
    chance = ratio * math.sqrt(sum(1 / max(count, 1) for count in counts))
    note("flood: goodput / peak", f"{ratio:.3f}", f"± {chance:.3f}, from the counts")
    note("flood: most rows", f"{flood.rows:.0f}", f"bound {bound}")
    refused = [1e3 * one.took for one in flood.run.samples if one.outcome == "rejected"]
    for who, times in (("knocking", flood.knocks.get(429, [])), ("flooding", refused)):
        if not times:
            continue
        spread = (
            f"{len(times)}; p99 {percentile(times, 0.99):.1f}, most {max(times, default=0):.1f}"
        )
        note(
            f"flood: refusal of a client that is {who}, ms", f"{percentile(times, 0.5):.1f}", spread
        )
    return found


def _outcomes(point: Point) -> str:
    everyone = point.run.summaries()[0]
    outcomes = f"{everyone.ok} answered, {everyone.rejected} refused, {everyone.failed} failed"
    return f"{outcomes}; wanted {point.rate:.2f}"


def main(
    model: Annotated[
        str, typer.Option(help="smollm2, or tiny: random, for a quick look")
    ] = "smollm2",
    rows: Annotated[int, typer.Option(help="--max-num-seqs of the server")] = 12,
    queue: Annotated[list[int] | None, typer.Option(help="--max-queue; may be repeated")] = None,
    seconds: Annotated[float, typer.Option(help="length of each run")] = 45,
    save: Annotated[bool, typer.Option("--record", help="add to bench/results.csv, draw")] = False,
) -> None:
    """Measures each bound on a server of its own, at the rates found with the first one."""
    os.environ[API_KEY] = KEY
    base, lines = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = SMOLLM2 if model == "smollm2" else make_tiny(place / "tiny", vocab_size=49152)
        for bound in queue or [2, 1024]:
            out = place / f"queue {bound}"
            out.mkdir()
            flags = ["--max-num-seqs", str(rows), "--max-queue", str(bound)]
            with serving(files, out / "server.log", flags) as (url, _):
                server = Server(url, out, seconds)
                base = base or server.capacity(rows)
                points = measure(server, base)
            case = f"{model}, {rows} rows, queue {bound}, {seconds:g} s each"
            lines += figures(case, rows + bound, points)
    table = Table("case", "metric", "value", "spread", title="Overload")
    for line in lines:
        table.add_row(*(line[key] for key in ("case", "metric", "value", "spread")))
    Console(width=160).print(table)
    if save:
        record.append("overload", record.asked("bench.overload"), lines)
        from bench import plot_overload

        plot_overload.draw()


if __name__ == "__main__":
    typer.run(main)
