"""Draws what each method changes, from a report of `bench.evaluate`.

python -m bench.plot_evaluation docs/results/smollm2-135m-instruct
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from divserve import plots
from divserve.evaluation.statistics import Change, change_of_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_group", "changes", "draw"]

LINE = 22
"""Pixels of a line of the picture."""
WIDTH = 760
GREEDY, SAMPLED, CONTROL = plots.BLUE, plots.ORANGE, plots.GREY
LABELS = {GREEDY: "greedy", SAMPLED: "sampled", CONTROL: "a control of the sampled one"}

Report = Mapping[str, Any]
"""The figures by study."""


class Line(NamedTuple):
    """A change against plain decoding."""

    name: str
    change: Change
    colour: str


def draw(folder: Path) -> None:
    """Writes ``changes.svg``, and ``TASK-groups.svg`` for ``conflict``."""
    report = json.loads((folder / "report.json").read_text())
    (folder / "changes.svg").write_text(plots.svg(changes(report)))
    if "conflict" in report:
        (folder / "conflict-groups.svg").write_text(plots.svg(by_group(report, "conflict")))


def changes(report: Report) -> Figure:
    """Each method's change of accuracy, or of diversity where nothing is judged."""
    found = []
    for study in report.values():
        for task, tables in study["tables"].items():
            judged = any(
                row["accuracy"] is not None for row in tables["sampled"] + tables["greedy"]
            )
            title = task if judged else f"{task} (diversity)"
            found += [*_greedy(title, tables["greedy"]), *_sampled(title, tables["sampled"])]
    return _figure("Change against plain decoding, with its 95 % interval", found)


def by_group(report: Report, task: str) -> Figure:
    """The change of greedy accuracy in each group of a task."""
    (table,) = [s["tables"][task]["greedy"] for s in report.values() if task in s["tables"]]
    found = [
        Line(
            f"{group}: {row['arm']}",
            change_of_share(part["won"], part["lost"], part["judged"]),
            GREEDY,
        )
        for group in table[0]["groups"]
        for row in table[1:]
        for part in [row["groups"][group]]
    ]
    return _figure(f"{task}: change against plain decoding by group, greedy", found)


def _greedy(title: str, table: Sequence[Report]) -> Iterator[Line]:
    for row in table[1:]:
        yield Line(f"{title}: {row['arm']}", Change(*row["change"]), GREEDY)


def _sampled(title: str, table: Sequence[Report]) -> Iterator[Line]:
    for row in table[1:]:
        name = row["arm"].partition(" (")[0] if row["control"] else f"{title}: {row['arm']}"
        yield Line(name, Change(*row["change"]), CONTROL if row["control"] else SAMPLED)


@plots.styled()
def _figure(title: str, lines: Sequence[Line]) -> Figure:
    figure = plots.figure(WIDTH, 100 + LINE * len(lines))
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    axes.axvline(0, color="black", linewidth=1)
    shown: set[str] = set()
    for place, line in enumerate(reversed(lines)):
        low, high = 100 * line.change.low, 100 * line.change.high
        axes.plot([low, high], [place, place], color=line.colour, linewidth=2)
        label = None if line.colour in shown else LABELS[line.colour]
        axes.plot([100 * line.change.mean], [place], "o", color=line.colour, label=label)
        shown.add(line.colour)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)], parse_math=False)
    axes.set(xlabel="percentage points", ylim=(-0.7, len(lines) - 0.3))
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=len(shown))
    return figure


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
