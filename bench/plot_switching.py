"""Draws docs/switching.svg, the frontier of switching, from bench/results.csv.

python -m bench.plot_switching
"""

from __future__ import annotations

import csv
import math
from itertools import cycle
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from divserve import plots
from loadtest.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "switching.svg"
ENDS = {"small": -math.inf, "large": math.inf}
"""Labels that are not thresholds, and their place among the thresholds."""
MARKERS = "os^D"
"""Markers of the pairs, in turn."""

Point = tuple[str, float, float]
"""Label, seconds per answer ÷ the large model's, share of correct answers."""


def series() -> dict[str, list[Point]]:
    """The newest points for every pair of models."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["bench"] == "two_models"]
    newest = {
        (line["case"], *line["metric"].split(": ", 1)): float(line["value"])
        for line in lines
        if ": " in line["metric"] and "questions" in line["case"]
    }
    found: dict[str, list[Point]] = {}
    for (case, side, figure), seconds in newest.items():
        if figure == "seconds an answer" and not side.startswith("seam"):
            whole = newest[case, "large alone", figure]
            accuracy = newest[case, side, "accuracy"]
            label = side.removeprefix("threshold ").removesuffix(" alone")
            found.setdefault(case.split(",")[0], []).append((label, seconds / whole, accuracy))
    return {case: sorted(points, key=lambda one: _order(one[0])) for case, points in found.items()}


def _order(label: str) -> float:
    """The small model alone, then falling thresholds, then the large model alone."""
    return ENDS[label] if label in ENDS else -float(label)


@plots.styled()
def drawing(pairs: dict[str, list[Point]]) -> Figure:
    """Correct answers against time: a line for each pair of models, a colour for each threshold."""
    figure = plots.figure(720, 420)
    axes = figure.add_subplot(
        title="Switching: right answers against time",
        xlabel="seconds an answer ÷ the large model's",
        ylabel="right answers",
    )
    every = sorted({point[0] for points in pairs.values() for point in points}, key=_order)
    shades = matplotlib.colormaps["viridis_r"].resampled(len(every))
    colours = {label: shades(i) for i, label in enumerate(every)}
    lines = []
    for (case, points), marker in zip(pairs.items(), cycle(MARKERS), strict=False):
        labels, times, shares = zip(*points, strict=True)
        lines += axes.plot(times, shares, marker, color=plots.GREY, ls="-", lw=0.75, label=case)
        axes.scatter(times, shares, c=[colours[one] for one in labels], marker=marker, zorder=3)
    axes.set(xlim=(0, None), ylim=(-0.02, None))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    dots = [
        Line2D([], [], color=colour, marker="o", ls="none", label=_caption(label))
        for label, colour in colours.items()
    ]
    axes.legend(handles=lines, loc="upper left")
    figure.legend(handles=dots, loc="outside right center", title="threshold")
    return figure


def _caption(label: str) -> str:
    return f"{label} model alone" if label in ENDS else f"{label} bits"


def main() -> None:
    """Writes the picture."""
    TARGET.write_text(plots.svg(drawing(series())), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
