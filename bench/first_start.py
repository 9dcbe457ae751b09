"""What a first start costs: seconds until kernels are ready, and until a guided first token.

Caches of compiled code are in a temporary folder: empty at the first start, filled at the second.

    python -m bench.first_start                  # kernels, of this machine's GPU if it has one
    python -m bench.first_start --serve FOLDER   # and a server, until a first guided token
    python -m bench.first_start --arch 90        # and three ways to compile for a GPU, without one
    python -m bench.first_start --record         # appends to bench/results.csv

The ways to compile the four variants of `divserve doctor`, in turn in every round: one after the
other, in threads (Triton's own ``AsyncCompileMode``), and in processes, as a server does.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadtest import record
from tests.support.server import API_KEY, serving

Figures = dict[tuple[str, str], list[float]]
"""Seconds of each round by case and metric."""

READY = """
import torch
from divserve_kernels.selfcheck import KINDS, Kind, check
gpu = torch.cuda.is_available()
device = torch.device("cuda" if gpu else "cpu")
print(check(device, {vocab}, (Kind(torch.bfloat16),) if gpu else KINDS).seconds)
"""
COMPILE = """
import time
from concurrent.futures import ThreadPoolExecutor
import torch, triton
from divserve_kernels import triton_backend
from divserve_kernels.ahead import Ahead, Job
from divserve_kernels.selfcheck import KINDS
from divserve_kernels.triton_launch import Gpu, compiling_for
gpu = Gpu({arch}, 132)
options = [triton_backend.variant({vocab}, kind.logits, None, {vocab}, nucleus)
           for kind in KINDS for nucleus in (True, False)]
def one_after_the_other():
    with compiling_for(gpu):
        for each in options:
            triton_backend.compile_variant(**each)
def threads():
    with ThreadPoolExecutor(len(options)) as pool, triton.AsyncCompileMode(pool):
        one_after_the_other()
def processes():
    Ahead([Job("divserve_kernels.triton_backend", each) for each in options], gpu).wait()
start = time.perf_counter()
{way}()
print(time.perf_counter() - start)
"""
WAYS = ("one_after_the_other", "threads", "processes")


@contextmanager
def caches() -> Iterator[dict[str, str]]:
    """The environment of a user without compiled code: divserve's, Triton's, torch's, vLLM's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield {
            "XDG_CACHE_HOME": folder,
            "NUMBA_CACHE_DIR": f"{folder}/divserve",
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        }


def printed(code: str, environment: dict[str, str]) -> float:
    """The number that a process prints last."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(run.stdout.split()[-1])


def first_token(url: str) -> float:
    """Seconds until the first token of a guided request."""
    body = {
        "model": "smol",
        "prompt": "The tower stands in Berlin. The city of the tower is",
        "max_tokens": 4,
        "stream": True,
        "decoding": {"method": "adacad", "guide": {"prompt": "The city of the tower is"}},
    }
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if line.startswith(b"data: {") and b'"text"' in line:
                return time.perf_counter() - start
    raise RuntimeError("no token")


def started(model: Path, flags: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of one start of a server."""
    log = Path(environment["XDG_CACHE_HOME"], "server.log")
    start = time.perf_counter()
    with serving(model, log, flags, environment=environment) as (url, _):
        found = {"until the server is ready, s": time.perf_counter() - start}
        first_token(url)
        found["until the first guided token, s"] = time.perf_counter() - start
        found["first token of the second guided request, s"] = first_token(url)
    return found


def measure(
    vocab: int, rounds: int, arch: int, model: Path | None, flags: list[str]
) -> tuple[Figures, list[float]]:
    """All figures, and (one after the other ÷ processes) of each round."""
    figures: Figures = {}
    ratios = []

    def add(case: str, metric: str, seconds: float) -> None:
        figures.setdefault((case, metric), []).append(seconds)

    for _ in range(rounds):
        with caches() as environment:
            for case in ("empty cache", "filled cache"):
                add(case, "kernels ready, s", printed(READY.format(vocab=vocab), environment))
        if model is not None:
            with caches() as environment:
                for case in ("empty cache", "filled cache"):
                    for metric, seconds in started(model, flags, environment).items():
                        add(case, metric, seconds)
        took = {}
        for way in WAYS if arch else ():
            with caches() as environment:
                code = COMPILE.format(arch=arch, vocab=vocab, way=way)
                took[way] = printed(code, environment)
            add(f"four variants for sm_{arch}", f"{way.replace('_', ' ')}, s", took[way])
        if took:
            ratios.append(took["one_after_the_other"] / took["processes"])
    return figures, ratios


def row(case: str, metric: str, values: list[float]) -> dict[str, str]:
    """A line of bench/results.csv."""
    spread = f"{min(values):.2f} to {max(values):.2f} in {len(values)} rounds"
    value = f"{statistics.median(values):.2f}"
    return {"case": case, "metric": metric, "value": value, "spread": spread}


def main(
    vocab: Annotated[int, typer.Option(help="Of the kernels' check.")] = 49_152,
    rounds: Annotated[int, typer.Option(help="Measured rounds; medians are shown.")] = 3,
    arch: Annotated[
        int, typer.Option(help="Also compare ways to compile for it: 80, 90, 100.")
    ] = 0,
    serve: Annotated[Path | None, typer.Option(help="Also start a server of this model.")] = None,
    flag: Annotated[list[str], typer.Option(help="More flags of divserve serve.")] = [],  # noqa: B006
    save: Annotated[bool, typer.Option("--record", help="Append to bench/results.csv.")] = False,
) -> None:
    """Measure and print one table."""
    figures, ratios = measure(vocab, rounds, arch, serve, flag)
    case = f"{serve.name}, " if serve else ""
    saved = [
        row(f"{case if 'token' in metric or 'server' in metric else ''}{name}", metric, values)
        for (name, metric), values in figures.items()
    ]
    if ratios:
        saved.append(row(f"four variants for sm_{arch}", "one after the other / processes", ratios))
    table = Table("case", "metric", "median", "smallest to largest")
    for figure in saved:
        table.add_row(*figure.values())
    Console().print(table)
    if save:
        options: list[Any] = [f"--arch {arch}"] if arch else []
        options += [f"--serve {serve.name}"] if serve else []
        command = " ".join(["python -m bench.first_start", *options, "--record"])
        record.append("first_start", command, saved)


if __name__ == "__main__":
    typer.run(main)
