"""Draws docs/look_back.svg, repetition against coherence, from bench/results.csv.

python -m bench.plot_look_back
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from divserve import plots
from loadtest.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "look_back.svg"
COLOURS = {
    "human": "black",
    "greedy": plots.RED,
    "nucleus": plots.GREEN,
    "typical": plots.PURPLE,
    "look_back": plots.BLUE,
}
MARKERS = "osD^vP"
"""Markers of the sides of one colour, in turn."""
FLOOR = 0.1
"""Percent; smaller values are drawn here, because the axis is logarithmic."""

Point = tuple[float, float]
"""rep-4 in percent, coherence."""


def series() -> dict[str, dict[str, Point]]:
    """The newest points by case and side; of cases that differ in more than the kind, the newest.

    A case begins with the model and the kind of the openings; the rest is how it was measured.
    """
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["bench"] == "look_back_effect"]
    how = lines[-1]["case"].split(", ")[2:]
    newest = {
        (line["case"], *line["metric"].split(": ")): float(line["value"])
        for line in lines
        if line["case"].split(", ")[2:] == how
    }
    found: dict[str, dict[str, Point]] = {}
    for (case, side, figure), value in newest.items():
        if figure == "rep-4":
            found.setdefault(case, {})[side] = (value, newest[case, side, "coherence"])
    return found


@plots.styled()
def drawing(cases: dict[str, dict[str, Point]]) -> Figure:
    """Coherence against repetition, with a panel for each case, on the same scales."""
    figure = plots.figure(980, 430)
    figure.suptitle("Look-back decoding: coherence with the opening against repetition")
    panels = figure.subplots(1, len(cases), sharex=True, sharey=True, squeeze=False)[0]
    styles = _styles(list(dict.fromkeys(side for points in cases.values() for side in points)))
    for axes, (case, points) in zip(panels, cases.items(), strict=True):
        for side, (repeated, coherence) in points.items():
            axes.plot(max(repeated, FLOOR), coherence, **styles[side])
        axes.set(title=case, xlabel="repeated 4-grams, %", xscale="log", xlim=(0.8 * FLOOR, 100))
        axes.set_xticks([FLOOR, 1, 10, 100], [f"≤ {FLOOR}", "1", "10", "100"])
    panels[0].set_ylabel("coherence, cosine")
    figure.legend(
        handles=[Line2D([], [], label=side, **style) for side, style in styles.items()],
        loc="outside lower center",
        ncols=4,
    )
    return figure


def _styles(sides: list[str]) -> dict[str, dict[str, Any]]:
    """A colour for each kind, and a different marker for every side of a kind."""
    kinds = {side: next(kind for kind in COLOURS if side.startswith(kind)) for side in sides}
    found = {}
    for side, kind in kinds.items():
        alike = [other for other in sides if kinds[other] == kind]
        marker = MARKERS[alike.index(side) % len(MARKERS)]
        found[side] = {"color": COLOURS[kind], "marker": marker, "linestyle": "none"}
    return found


def main() -> None:
    """Writes the picture."""
    TARGET.write_text(plots.svg(drawing(series())), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
