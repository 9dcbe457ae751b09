"""A load test from beginning to end: server, warm-up, users, report.

python -m loadtest --minutes 1 --users 8                  # starts SmolLM2, stops it after
python -m loadtest --minutes 60 --load 0.7                # an hour at 70 % of what it can do
python -m loadtest --url http://127.0.0.1:8000 --shape step --guided-share 1 --mix adacad
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from rich.console import Console

from loadtest import record, report, settings
from loadtest.client import Client
from loadtest.mix import Prompts, body
from loadtest.swarm import capacity, swarm

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "out"
SATURATING_USERS = 32
"""Users who, without pauses and half of them guided, fill the 32 rows of a batch on a CPU."""


def parser() -> argparse.ArgumentParser:
    """Our own arguments and the knobs of the users."""
    found = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    found.add_argument("--minutes", type=float, default=5.0, help="length of the test (default 5)")
    found.add_argument("--users", type=int, default=8, help="most concurrent users (default 8)")
    found.add_argument("--url", help="a running server (default: a fresh one with SmolLM2)")
    found.add_argument("--serve", default="", help="further flags for the fresh server")
    found.add_argument(
        "--load",
        type=float,
        default=0.0,
        help=f"request rate as a share of the peak, which {SATURATING_USERS} users without pauses "
        "find first; sets --rate",
    )
    found.add_argument(
        "--calibration", type=float, default=90.0, help="seconds for finding the peak (default 90)"
    )
    found.add_argument("--processes", type=int, default=1, help="locust processes (default 1)")
    found.add_argument("--out", type=Path, default=OUT, help="folder of the report")
    found.add_argument(
        "--record",
        action="store_true",
        help="add the figures to bench/results.csv, draw docs/load.svg (--load: docs/soak.svg)",
    )
    settings.add_arguments(found.add_argument_group("requests"))
    return found


@contextmanager
def server(given: argparse.Namespace, console: Console) -> Iterator[tuple[str, int | None]]:
    """Address of the server under test, and its process if it was started here."""
    if given.url:
        yield given.url, None
        return
    import os

    from loadtest.client import API_KEY
    from tests.support.models import SMOLLM2
    from tests.support.server import API_KEY as KEY
    from tests.support.server import serving

    console.print("→ starting a server with SmolLM2 (half a minute)")
    os.environ[API_KEY] = KEY
    flags = ["--served-model-name", SMOLLM2.name, *shlex.split(given.serve)]
    with serving(SMOLLM2, given.out / "server.log", flags) as (url, process):
        yield url, process.pid


def warm_up(url: str, given: argparse.Namespace) -> None:
    """Sends one request of each kind, so that a setting that cannot work fails at once.

    Raises:
        RuntimeError: one of them failed; the message says why.
    """
    client = Client(url, given.timeout)
    model, rng = given.model or client.model(), random.Random(-1)
    prompts = Prompts(Path(given.prompts), given.notes)
    for kind in settings.mix(given).kinds():
        asked = body(model, kind, prompts.draw(rng), 8, given.temperature, given.ignore_eos)
        if (sample := client.ask(kind, asked)).outcome == "failed":
            raise RuntimeError(f"{kind}: {sample.error}")


def calibrated(
    url: str, given: argparse.Namespace, console: Console, pid: int | None
) -> dict[str, float]:
    """Finds the highest rate of answers per second, and sets ``--rate`` to ``--load`` times it.

    Raises:
        RuntimeError: there were no answers; the message says where to look.
    """
    wanted = {
        "out": given.out / "calibration", "minutes": given.calibration / 60,
        "users": SATURATING_USERS, "think": 0.0, "rate": 0.0, "shape": "soak",
        "seed": given.seed + 1,  # So that the prefix cache knows nothing.
    }  # fmt: skip
    full = argparse.Namespace(**{**vars(given), **wanted})
    console.print(f"→ {SATURATING_USERS} users for {given.calibration:g} s, to find the peak")
    swarm(url, full, console, pid=pid)
    peak = capacity(report.read(full.out)) if (full.out / "run.json").exists() else 0.0
    if peak == 0:
        raise RuntimeError(f"no answers: see {full.out / 'locust.log'}")
    given.rate = given.load * peak
    console.print(f"peak {peak:.2f} answers/s; from now on {given.rate:.2f} requests/s")
    return {"load": given.load, "peak": peak}


def main(argv: list[str] | None = None) -> int:
    """Runs the test; the exit code is 1 if a request failed, or nothing was asked."""
    given = parser().parse_args(argv)
    given.out = given.out.absolute()
    given.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    about: dict[str, float] = {}
    with server(given, console) as (url, pid):
        try:
            warm_up(url, given)
            if given.load:
                about = calibrated(url, given, console, pid)
        except (RuntimeError, OSError, urllib3.exceptions.HTTPError) as error:
            console.print(f"the warm-up failed: {error}", markup=False, soft_wrap=True)
            return 1
        code = swarm(url, given, console, pid=pid)
    told = given.out / "run.json"
    if not told.exists():
        console.print((given.out / "locust.log").read_text()[-2000:])
        return code or 1
    told.write_text(json.dumps(json.loads(told.read_text()) | about, indent=1))
    run = report.read(given.out)
    if not run.samples:
        console.print("nobody asked anything: see locust.log")
        return code or 1
    report.write(run, given.out)
    report.show(run)
    for fault, count in run.errors().items():
        console.print(f"{count} × {fault}", markup=False)
    console.print(f"report in {given.out / 'report.html'}")
    if given.record:
        command = " ".join(["python -m loadtest", *(sys.argv[1:] if argv is None else argv)])
        record.append("load", command, report.lines(run))
        picture = "soak.svg" if given.load else "load.svg"
        shutil.copy(given.out / "report.svg", ROOT / "docs" / picture)
    return code


if __name__ == "__main__":
    sys.exit(main())
