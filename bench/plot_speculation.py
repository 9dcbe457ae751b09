"""Draws docs/speculation.svg, what a guided answer costs with drafts, from bench/results.csv.

python -m bench.plot_speculation
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.material import Task
from divserve import plots
from loadtest.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "speculation.svg"
CASE = re.compile(r"smollm2, (?P<task>[^,]+), (?P<count>1 at once|\d+ always), .*, adacad, greedy")
TO_PLAIN, TO_GUIDED = "guided + lookup / plain, wall", "guided + lookup / guided, wall"

Points = dict[int, tuple[float, float]]
"""By requests at once: seconds of a token with drafts and without, ÷ those of a plain one."""


def series() -> dict[str, Points]:
    """The newest figures of each task."""
    newest: dict[tuple[str, int], dict[str, float]] = {}
    with RESULTS.open(newline="") as file:
        for line in csv.DictReader(file):
            found = CASE.fullmatch(line["case"])
            if line["bench"] == "speculation" and found:
                case = newest.setdefault((found["task"], int(found["count"].split()[0])), {})
                case[line["metric"]] = float(line["value"])
    tasks: dict[str, Points] = {str(task): {} for task in Task}
    for (task, count), case in sorted(newest.items()):
        if TO_PLAIN in case:
            tasks[task][count] = (case[TO_PLAIN], case[TO_PLAIN] / case[TO_GUIDED])
    return {task: points for task, points in tasks.items() if points}


@plots.styled()
def drawing(tasks: dict[str, Points]) -> Figure:
    """A line for each task, over the number of requests; dotted: without drafts."""
    figure = plots.figure(720, 360)
    axes = figure.add_subplot(
        title="A guided answer's token, with drafts: time ÷ that of a plain token",
        xlabel="requests that run at any time",
        ylabel="÷ plain, without drafts",
    )
    counts = sorted({count for points in tasks.values() for count in points})
    places = [counts.index(count) for count in counts]
    colours = (*plots.COLOURS, plots.RED)
    for (task, points), colour in zip(tasks.items(), colours, strict=False):
        at = [counts.index(count) for count in points]
        drafted, bare = zip(*points.values(), strict=True)
        axes.plot(at, drafted, "o-", color=colour, label=task)
        axes.plot(at, bare, ":", color=colour)
    axes.axhline(1, color=plots.GREY, lw=0.75)
    axes.set(xticks=places, xticklabels=counts, ylim=(0, None))
    lines, labels = axes.get_legend_handles_labels()
    lines.append(Line2D([], [], color=plots.GREY, ls=":"))
    figure.legend(lines, [*labels, "guided, without drafts"], loc="outside right center")
    return figure


def main() -> None:
    """Writes the picture."""
    TARGET.write_text(plots.svg(drawing(series())), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
