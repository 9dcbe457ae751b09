"""Draws the report of a load test from the files that its users left.

python -m loadtest.report FOLDER        # again, from the samples of an earlier test
"""

from __future__ import annotations

import csv
import json
import math
import sys
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from divserve.plots import svg
from loadtest.draw import drawing
from loadtest.figures import LATENCIES, Run, Summary
from loadtest.monitor import read_readings
from loadtest.sample import read_samples
from loadtest.steady import Change, changes, slope

__all__ = ["lines", "read", "show", "steadiness", "table", "write"]

SHARES = (0.5, 0.95, 0.99)
COLUMNS = (
    "requests", "answered", "failed", "rejected", "tokens/s", "goodput", "good/s",
    *(f"{name.upper()} p{100 * share:.0f} ms" for name in LATENCIES for share in SHARES),
)  # fmt: skip
STEADY_COLUMNS = ("", "first third", "last third", "change", "interval of 95 %")
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>divserve load test</title>
<style>body {{ font-family: sans-serif; margin: 2em; max-width: 75em }}
table {{ border-collapse: collapse; font-size: 85% }} td, th {{ padding: .2em .6em;
text-align: right; border-bottom: 1px solid #ddd }} th:first-child {{ text-align: left }}</style>
<h1>Load test</h1>{drawing}<h2>Figures</h2><table>{rows}</table>
<p>Times in milliseconds. Goodput: share of all requests answered within the SLO.</p>
<h2>Steadiness</h2><table>{steadiness}</table>
<p>After a warm-up tenth. A change whose interval holds 0 may be chance.</p>
<h2>Faults</h2>{faults}<h2>Settings</h2><pre>{settings}</pre></html>
"""


def read(folder: Path) -> Run:
    """Reads the test that left its files in the folder."""
    about = json.loads((folder / "run.json").read_text())
    return Run(about, read_samples(folder), read_readings(folder))


def _cells(summary: Summary) -> list[str]:
    shown = [str(n) for n in (summary.asked, summary.ok, summary.failed, summary.rejected)]
    shown += [f"{summary.tokens_per_s:.1f}", f"{100 * summary.goodput:.1f} %"]
    shown.append(f"{summary.good_per_s:.2f}")
    for name in LATENCIES:
        shown += [_ms(summary.at(name, share)) for share in SHARES]
    return shown


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1e3 * seconds:.0f}"


def _steady_cells(change: Change) -> list[str]:
    digits = 1 if change.name.startswith("memory") else 0
    cells = [change.name, f"{change.first:.{digits}f}", f"{change.last:.{digits}f}"]
    cells.append("–" if math.isnan(change.share) else f"{100 * change.share:+.1f} %")
    known = not math.isnan(change.low)
    return [*cells, f"{100 * change.low:+.1f} to {100 * change.high:+.1f} %" if known else "–"]


def steadiness(run: Run) -> list[list[str]]:
    """One line per figure: first and last third, change, and the interval of the change."""
    rows = [_steady_cells(change) for change in changes(run)]
    if line := slope(run):
        rise = f"{line.mb_per_hour:+.2f} ({100 * line.share_per_hour:+.2f} %)"
        rows.append(["memory MB/h", "–", "–", rise, f"{line.low:+.2f} to {line.high:+.2f}"])
    return rows


def show(run: Run) -> None:
    """Prints the tables."""
    console = Console(width=140)
    console.print(table(run))
    steady = Table(*STEADY_COLUMNS, title="Steadiness")
    for column in steady.columns[1:]:
        column.justify = "right"
    for row in steadiness(run):
        steady.add_row(*row)
    if steady.row_count:
        console.print(steady)


def table(run: Run) -> Table:
    """The table, with a column for each group of requests."""
    summaries = run.summaries()
    found = Table("", *(one.name for one in summaries), title="Load test")
    for column in found.columns[1:]:
        column.justify = "right"
    for label, *cells in zip(COLUMNS, *map(_cells, summaries), strict=True):
        if set(cells) != {"–"}:
            found.add_row(label, *cells)
    return found


def lines(run: Run) -> list[dict[str, str]]:
    """The figures as lines of bench/results.csv."""
    about = run.about
    asked = f"{run.rate:.3g} requests/s" if run.rate else f"{about['users']} users"
    if load := about.get("load"):
        asked += f" ({100 * load:.0f} % of {about['peak']:.3g})"
    case = (
        f"{asked}, {float(about['seconds']):.0f} s, {about['shape']}, "
        f"{float(about['guided_share']):g} guided: {about['mix']}, {about['max_tokens']} tokens"
    )
    found = []

    def note(metric: str, value: str, spread: str = "") -> None:
        found.append({"case": case, "metric": metric, "value": value, "spread": spread})

    for one in run.summaries():
        note(
            f"{one.name}: requests", str(one.asked), f"{one.failed} failed, {one.rejected} rejected"
        )
        note(f"{one.name}: tokens/s", f"{one.tokens_per_s:.1f}")
        limits = f"TTFT ≤ {1e3 * run.slo[0]:g} ms, TPOT ≤ {1e3 * run.slo[1]:g} ms"
        note(f"{one.name}: goodput", f"{one.goodput:.3f}", limits)
        for name in LATENCIES:
            low, *rest = (_ms(one.at(name, share)) for share in SHARES)
            if low != "–":
                spread = f"p95 {rest[0]}, p99 {rest[1]}"
                note(f"{one.name}: {name.upper()} ms, median", low, spread)
    for name, first, last, change, interval in steadiness(run):
        note(f"steadiness: {name}", change, f"{first} to {last}, 95 %: {interval}")
    return found


def write(run: Run, folder: Path) -> None:
    """Writes report.svg, report.html, figures.csv and steady.csv."""
    picture = svg(drawing(run))
    (folder / "report.svg").write_text(picture, encoding="utf-8")
    rows = [["", *COLUMNS]] + [[one.name, *_cells(one)] for one in run.summaries()]
    steady = [[*STEADY_COLUMNS], *steadiness(run)]
    for name, cells in (("figures.csv", rows), ("steady.csv", steady)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(cells)
    errors = [f"<li>{count} × {escape(error)}</li>" for error, count in run.errors().items()]
    page = PAGE.format(
        drawing=picture,
        rows=_rows([[*row] for row in zip(*rows, strict=True)]),
        steadiness=_rows(steady),
        faults=f"<ul>{''.join(errors)}</ul>" if errors else "<p>None.</p>",
        settings=escape(json.dumps(run.about, indent=1)),
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def _rows(rows: list[list[str]]) -> str:
    """The table as HTML, with a header cell for each row."""
    return "\n".join(
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for label, *cells in rows
    )


def main() -> None:
    """Reads a folder, writes its report and prints the table."""
    folder = Path(sys.argv[1])
    run = read(folder)
    write(run, folder)
    show(run)


if __name__ == "__main__":
    main()
