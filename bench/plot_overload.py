"""Draws docs/overload.svg, goodput against requests, from bench/results.csv.

python -m bench.plot_overload
"""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from divserve import plots
from loadtest.record import RESULTS

__all__ = ["draw"]

TARGET = Path(__file__).parents[1] / "docs" / "overload.svg"
OFFERED, GOOD = "requests/s", "good answers/s"

Points = list[tuple[float, float]]
"""Requests per second, good answers per second."""


def series() -> tuple[str, dict[str, Points]]:
    """Hardware of the last run, and the newest points of every case that was measured on it."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["bench"] == "overload"]
    hardware = lines[-1]["hardware"]
    values: dict[str, dict[tuple[str, str], float]] = {}
    for line in lines:
        name, _, figure = line["metric"].partition(": ")
        if figure in (OFFERED, GOOD) and line["hardware"] == hardware:
            values.setdefault(line["case"], {})[name, figure] = float(line["value"])
    found = {
        case: sorted((x, own[name, GOOD]) for (name, figure), x in own.items() if figure == OFFERED)
        for case, own in values.items()
    }
    return hardware, found


@plots.styled()
def drawing(hardware: str, cases: dict[str, Points]) -> Figure:
    """Goodput against requests, on a logarithmic axis because the flood is ten times the peak."""
    figure = plots.figure(720, 400)
    axes = figure.add_subplot(
        title=f"Good answers a second, {hardware}",
        xlabel="requests a second",
        ylabel="good answers a second",
        xscale="log",
    )
    for case, points in cases.items():
        axes.plot(*zip(*points, strict=True), "o-", label=case)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw() -> None:
    """Writes the picture."""
    TARGET.write_text(plots.svg(drawing(*series())), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    draw()
