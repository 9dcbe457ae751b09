"""Draws a load test: users, tokens, latencies, goodput and memory over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from divserve import plots
from loadtest.figures import Run, percentile
from loadtest.shapes import users_at

__all__ = ["drawing"]

COLOURS = {"plain": plots.BLUE, "guided": plots.ORANGE}
PERCENTILES = {"median": 0.5, "p95": 0.95}
UNITS = (("hours", 3600, 7200), ("minutes", 60, 600), ("seconds", 1, 0))
"""Units of the time axis: their seconds, and how long a test must be to use them."""


@dataclass(frozen=True)
class Line:
    """One curve: one value per window, NaN where there is none."""

    values: Sequence[float]
    label: str = ""
    colour: str = plots.GREY
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves that share one axis."""

    title: str
    lines: Sequence[Line]
    limit: float | None = None
    """Drawn as a separate line, if it is within the range of the axis."""
    highest: float | None = None
    """Upper end of the axis; None: above the curves."""


def panels(run: Run, count: int) -> list[Panel]:
    """What is drawn, from top to bottom."""
    width = run.seconds / count
    sides = {name: run.group(name) for name in COLOURS if run.group(name)}
    times = [(i + 0.5) * width for i in range(count)]
    shape, users = str(run.about["shape"]), int(run.about["users"])
    crowd = [float(users_at(shape, at, users, run.seconds) or 0) for at in times]
    found = [Panel(f"Users ({shape})", [Line(crowd)])]
    if run.rate:
        wanted = [run.rate * n / users for n in crowd]
        begun = [(run.since_start(one), 1.0) for one in run.samples]
        came = [len(window) / width for window in run.windows(begun, count)]
        lines = [Line(came, "begun"), Line(wanted, "wanted", dashed=True)]
        found = [Panel("Requests/s", lines)]
    tokens = [
        Line([sum(w) / width for w in run.windows(run.arrivals(group), count)], name, COLOURS[name])
        for name, group in sides.items()
    ]
    found.append(Panel("Throughput, tokens/s", tokens))
    for latency, limit in (("ttft", run.slo[0]), ("itl", None)):
        lines = []
        for name, group in sides.items():
            windows = run.windows(run.points(latency, group), count)
            for label, share in PERCENTILES.items():
                values = [1e3 * percentile(window, share) for window in windows]
                lines.append(Line(values, f"{name}, {label}", COLOURS[name], share > 0.5))
        found.append(Panel(f"{latency.upper()}, ms", lines, 1e3 * limit if limit else None))
    good = [
        Line([_share(w) for w in run.windows(_goods(run, name), count)], name, COLOURS[name])
        for name in sides
    ]
    limits = f"TTFT ≤ {1e3 * run.slo[0]:g} ms and TPOT ≤ {1e3 * run.slo[1]:g} ms"
    found.append(Panel(f"Goodput: requests with {limits}, %", good, highest=100))
    lost = [(run.since_start(one), 1.0) for one in run.samples if one.outcome != "ok"]
    if lost:
        rates = [sum(w) / width for w in run.windows(lost, count)]
        found.append(Panel("Failed and rejected requests/s", [Line(rates, colour=plots.RED)]))
    return found + _of_server(run, count)


def _of_server(run: Run, count: int) -> list[Panel]:
    """What could be read from the server: medians of each window."""

    def medians(name: str) -> list[float]:
        began = float(run.about["began"])
        values = [(one.at - began, getattr(one, name)) for one in run.readings]
        windows = run.windows([(at, v) for at, v in values if v is not None], count)
        return [percentile(window, 0.5) for window in windows]

    rows = [Line(medians("running"), "running"), Line(medians("waiting"), "waiting", dashed=True)]
    panels = [
        Panel("Rows", rows),
        Panel("Memory of the server, MB", [Line(medians("memory"))]),
        Panel("Open files of the server", [Line(medians("files"))]),
    ]
    return [p for p in panels if not all(math.isnan(v) for line in p.lines for v in line.values)]


def _goods(run: Run, name: str) -> list[tuple[float, float]]:
    return [(run.since_start(one), float(one.meets(*run.slo))) for one in run.group(name)]


def _share(window: Sequence[float]) -> float:
    return 100 * sum(window) / len(window) if window else math.nan


@plots.styled()
def drawing(run: Run) -> Figure:
    """The picture. A window holds ten seconds, or a thirtieth of a short test."""
    count = max(10, min(60, round(run.seconds / 10)))
    shown = panels(run, count)
    unit, size = next((name, size) for name, size, least in UNITS if run.seconds >= least)
    times = (np.arange(count) + 0.5) * run.seconds / count / size
    figure = plots.figure(820, 60 + 145 * len(shown))
    figure.suptitle(_title(run))
    column = figure.subplots(len(shown), 1, sharex=True)
    for axes, panel in zip(column, shown, strict=True):
        _draw(axes, panel, times)
    column[-1].set(xlabel=unit, xlim=(0, run.seconds / size))
    return figure


def _title(run: Run) -> str:
    guided = f"{100 * float(run.about['guided_share']):.0f} % guided"
    if not run.rate:
        return f"Load: {run.about['users']} users, {guided} ({run.about['mix']})"
    load = run.about.get("load")
    share = f", {100 * load:.0f} % of the peak" if load else ""
    return f"Load: {run.rate:.2f} requests/s{share}, {guided}"


def _draw(axes: Axes, panel: Panel, times: np.ndarray) -> None:
    for line in panel.lines:
        # A line breaks where there are no values; one value between two breaks is a dot.
        there = np.pad(np.isfinite(line.values), 1)
        alone = there[1:-1] & ~there[:-2] & ~there[2:]
        style = ".--" if line.dashed else ".-"
        axes.plot(times, line.values, style, color=line.colour, label=line.label, markevery=alone)
    highest = panel.highest or np.nanmax([0.0, *(v for line in panel.lines for v in line.values)])
    axes.set(title=panel.title, ylim=(0, 1.05 * highest or 1))
    if panel.limit is not None and panel.limit <= highest:
        axes.axhline(panel.limit, color=plots.RED, linestyle=":", label="SLO")
    if any(line.label for line in panel.lines):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
