"""The options of ``divserve eval``."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from divserve.errors import StartupError
from divserve.evaluation.items import Task, load
from divserve.evaluation.settings import Settings

__all__ = ["evaluate"]

KEY = "DIVSERVE_API_KEY"
INTERRUPTED = 130


def evaluate(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK…", help="Names of built-in tasks, or JSONL files.")
    ],
    method: Annotated[
        list[str], typer.Option(help="NAME, NAME=JSON or NAME=FILE.json; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: answers, report.md, plots.")],
    url: Annotated[str, typer.Option(help="Of a server of divserve.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Served model; else the first one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task, at most.")] = None,
    sampled: Annotated[
        int, typer.Option(min=0, help="Items of each task that are also sampled; 0 is none.")
    ] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=10, help="Of the sampled answers.")
    ] = 1.0,
    parallel: Annotated[int, typer.Option(min=1, max=1024, help="Requests at once.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the sampled answers.")] = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on with what --out holds, or start anew.")
    ] = True,
) -> int:
    """Compare methods with plain decoding on tasks, through a running server.

    The server's key is read from DIVSERVE_API_KEY. Ctrl-C stops; the same command goes on.
    """
    settings = Settings(
        tuple(tasks), tuple(method), url, out, model, os.environ.get(KEY), limit, sampled,
        temperature, parallel, seed, resume,
    )  # fmt: skip
    from divserve.evaluation import report, run

    loaded = [_task(name) for name in tasks]
    try:
        with _Display() as display:
            done = asyncio.run(run.evaluate(settings, loaded, display.show))
    except KeyboardInterrupt:
        typer.echo(f"stopped: the same command goes on from {out}", err=True)
        return INTERRUPTED
    report.write(settings, done, hardware(), commit())
    typer.echo(f"{out / 'report.md'} is ready")
    return 0


def hardware() -> str:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((li.split(":", 1)[1].strip() for li in lines if "model name" in li), name)
    return f"{os.cpu_count()} cores {name}"


def commit() -> str | None:
    """The commit of the source tree that runs; None for an installed package."""
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _task(name: str) -> Task:
    from divserve.evaluation.tasks import TASKS

    if name in TASKS:
        return TASKS[name]()
    if not name.endswith(".jsonl"):
        raise StartupError(f"there is no task '{name}': give a .jsonl file, or {', '.join(TASKS)}")
    return load(Path(name))


class _Display:
    """A bar for the arm under way; without a terminal a line for each arm that is finished."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, arm: str, done: int, total: int) -> None:
        self._bar.update(self._task, description=arm, completed=done, total=total)
        if done == total and not self.console.is_terminal:
            self.console.print(f"{arm}: {total}", markup=False, highlight=False, soft_wrap=True)
