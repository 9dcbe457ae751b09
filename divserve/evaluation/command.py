"""The options of ``divserve eval``."""

from __future__ import annotations

import asyncio
import os
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
        list[str],
        typer.Argument(metavar="TASK…", help="Names, data sets as NAME=FOLDER, or JSONL files."),
    ],
    method: Annotated[
        list[str], typer.Option(help="NAME, NAME=JSON or NAME=FILE.json; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write: answers, report.md, plots.")],
    url: Annotated[str, typer.Option(help="Of a server of divserve.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Served model; else the first one.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task, at most.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer, at most; else as the task says.")
    ] = None,
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
    hardware: Annotated[
        str | None, typer.Option(help="Of the server, for the report; else this machine's.")
    ] = None,
    note: Annotated[str, typer.Option(help="A sentence for the report.")] = "",
) -> int:
    """Compare methods with plain decoding on tasks, through a running server.

    The server's key is read from DIVSERVE_API_KEY. Ctrl-C stops; the same command goes on.
    """
    settings = Settings(
        tuple(tasks), tuple(method), url, out, model, os.environ.get(KEY), limit,
        max_tokens, sampled, temperature, parallel, seed, resume,
    )  # fmt: skip
    from divserve.evaluation import report, run
    from divserve.evaluation.origin import Origin

    origin = Origin.here(hardware, note)
    loaded = [_task(name) for name in tasks]
    try:
        with _Display() as display:
            done = asyncio.run(run.evaluate(settings, loaded, origin, display.show))
    except KeyboardInterrupt:
        typer.echo(f"stopped: the same command goes on from {out}", err=True)
        return INTERRUPTED
    report.write(settings, done)
    typer.echo(f"{out / 'report.md'} is ready")
    return 0


def _task(given: str) -> Task:
    from divserve.evaluation.adapters import ADAPTERS, adapted
    from divserve.evaluation.tasks import TASKS

    name, equals, place = given.partition("=")
    if name in ADAPTERS and bool(equals) == bool(place):
        return adapted(name, place)
    if given in TASKS:
        return TASKS[given]()
    if not given.endswith(".jsonl"):
        known = ", ".join((*TASKS, *ADAPTERS))
        raise StartupError(f"there is no task '{given}': give a .jsonl file, or {known}")
    return load(Path(given))


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
