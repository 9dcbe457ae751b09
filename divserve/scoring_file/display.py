"""What the terminal shows: a bar while a run goes on, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from divserve.scoring_file.tally import QUANTILES

__all__ = ["Display", "show"]

LINE_S = 30.0
"""Seconds between two lines about the progress if there is no terminal."""
WIDTH = 120
"""Of the table if there is no terminal."""


class Display:
    """A bar on stderr, or a line now and then; a context manager."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            BarColumn(20), MofNCompleteColumn(), TextColumn("lines{task.description}"),
            TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int, failed: int) -> None:
        """Takes the number of the last line that is done, of all lines, and of failed ones."""
        said = f", {failed} failed" if failed else ""
        self._bar.update(self._task, description=said, completed=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self._told > LINE_S:
            self._told = time.monotonic()
            self.console.print(f"{done} of {total} lines{said}", highlight=False, soft_wrap=True)


def show(summary: Mapping[str, Any]) -> None:
    """Prints the table of a complete run on stdout, and its failed lines on stderr."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(_table(summary))
    if any(row.get("sampled") for row in summary["scores"].values()):
        console.print("Quantiles are of a random sample of a million values.", highlight=False)
    _failures(summary)


def _table(summary: Mapping[str, Any]) -> Table:
    caption = f"{summary['texts']:,} texts, {summary['tokens']:,} scored tokens"
    table = Table("score", "larger means", caption=caption)
    for name in ("texts", "mean", *QUANTILES):
        table.add_column(name, justify="right", no_wrap=True)
    nulls = any(row["null"] for row in summary["scores"].values())
    if nulls:
        table.add_column("null", justify="right")
    for score, row in summary["scores"].items():
        figures = (row.get(name) for name in ("mean", *QUANTILES))
        cells = [score, row["larger_means"], f"{row['count']:,}", *map(_short, figures)]
        table.add_row(*cells, *([f"{row['null']:,}"] if nulls else []))
    return table


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _failures(summary: Mapping[str, Any]) -> None:
    if not summary["failed"]:
        return
    console = Console(stderr=True)
    told = [f"{summary['failed']:,} of {summary['lines']:,} lines failed:"]
    for record in summary["failures"]:
        error, own = record["error"], "" if record["id"] is None else f" ({record['id']})"
        param = f"{error['param']}: " if error.get("param") else ""
        told.append(f"  line {record['line']}{own}: {param}{error['message']}")
    if more := summary["failed"] - len(summary["failures"]):
        told.append(f"  and {more:,} more, in the output")
    console.print("\n".join(told), markup=False, highlight=False, soft_wrap=True)
