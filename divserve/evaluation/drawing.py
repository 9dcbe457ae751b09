"""Draws the arms of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from divserve import plots
from divserve.evaluation.table import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawing"]

ROW = 26
"""Pixels of an arm."""
CONTROL, METHOD, PLAIN = plots.GREY, plots.BLUE, plots.ORANGE


@plots.styled()
def drawing(title: str, greedy: Sequence[Row], sampled: Sequence[Row]) -> Figure:
    """Accuracies with their 95 % intervals, or diversity where nothing is judged."""
    table = [*greedy, *sampled]
    figure = plots.figure(760, 90 + ROW * len(table))
    axes = figure.subplots()
    judged = table[0].accuracy is not None
    axes.set_title(title, parse_math=False)
    for place, row in enumerate(reversed(table)):
        first = row in (*greedy[:1], *sampled[:1])
        colour = CONTROL if row.control else PLAIN if first else METHOD
        value = row.diversity if row.accuracy is None else row.accuracy
        axes.plot([100 * value], [place], "o", color=colour)
        if judged:
            axes.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=2)
    axes.set_yticks(range(len(table)), [row.arm for row in reversed(table)], parse_math=False)
    axes.set(xlim=(0, 100), xlabel="% right" if judged else "diversity, %")
    axes.grid(visible=False, axis="y")
    return figure
