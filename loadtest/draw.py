"""The picture of a load test as SVG: users, tokens, latencies, goodput, memory over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from loadtest.figures import Run, percentile
from loadtest.shapes import users_at

__all__ = ["drawing"]

COLOURS = {"plain": "#2563a8", "guided": "#d08a2e"}
GREY, RED = "#777", "#b3261e"
UNITS = (("h", 3600, 7200), ("min", 60, 600), ("s", 1, 0))
"""With their seconds, and how long a test must be for them."""
LEFT, WIDTH, HEIGHT, GAP, TOP = 70, 620, 110, 44, 56


@dataclass(frozen=True)
class Line:
    """One curve: a value per window, NaN where there is none."""

    values: Sequence[float]
    colour: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves over one axis."""

    title: str
    unit: str
    lines: Sequence[Line]
    limit: float | None = None
    """Drawn as a line of its own, if it is in reach."""


def _nice(value: float) -> float:
    """The next of 1, 2, 3, 5, 10, … above a value."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(
        step * power for step in (1.0, 2.0, 3.0, 5.0, 10.0) if step * power >= value * 0.999999
    )


def panels(run: Run, count: int) -> list[Panel]:
    """What is drawn, from top to bottom."""
    width = run.seconds / count
    sides = {name: run.group(name) for name in COLOURS if run.group(name)}
    times = [(i + 0.5) * width for i in range(count)]
    shape, users = str(run.about["shape"]), int(run.about["users"])
    crowd = [float(users_at(shape, at, users, run.seconds) or 0) for at in times]
    found = [Panel(f"Users ({shape})", "", [Line(crowd, GREY)])]
    if run.rate:
        rates = [run.rate * n / users for n in crowd]
        begun = [(run.since_start(one), 1.0) for one in run.samples]
        came = [len(window) / width for window in run.windows(begun, count)]
        lines = [Line(came, GREY), Line(rates, GREY, dashed=True)]
        found = [Panel("Requests that begin, and how many shall (dashes)", "1/s", lines)]
    tokens = [
        Line([sum(w) / width for w in run.windows(run.arrivals(group), count)], COLOURS[name])
        for name, group in sides.items()
    ]
    found.append(Panel("Throughput", "tokens/s", tokens))
    for latency, limit in (("ttft", run.slo[0]), ("itl", None)):
        lines = []
        for name, group in sides.items():
            windows = run.windows(run.points(latency, group), count)
            for share in (0.5, 0.95):
                values = [1e3 * percentile(window, share) for window in windows]
                lines.append(Line(values, COLOURS[name], dashed=share > 0.5))
        title = f"{latency.upper()}: median (line) and 95th percentile (dashes)"
        found.append(Panel(title, "ms", lines, 1e3 * limit if limit else None))
    good = [
        Line([_share(w) for w in run.windows(_goods(run, name), count)], COLOURS[name])
        for name in sides
    ]
    limits = f"TTFT ≤ {1e3 * run.slo[0]:g} ms and TPOT ≤ {1e3 * run.slo[1]:g} ms"
    found.append(Panel(f"Goodput: requests with {limits}", "%", good))
    lost = [(run.since_start(one), 1.0) for one in run.samples if one.outcome != "ok"]
    if lost:
        rates = [sum(w) / width for w in run.windows(lost, count)]
        found.append(Panel("Failed and rejected", "1/s", [Line(rates, RED)]))
    return found + _of_server(run, count)


def _of_server(run: Run, count: int) -> list[Panel]:
    """What was read from the server, where it could be: medians of each window."""

    def medians(name: str) -> list[float]:
        began = float(run.about["began"])
        values = [(one.at - began, getattr(one, name)) for one in run.readings]
        windows = run.windows([(at, v) for at, v in values if v is not None], count)
        return [percentile(window, 0.5) for window in windows]

    rows = [Line(medians("running"), GREY), Line(medians("waiting"), GREY, dashed=True)]
    panels = [
        Panel("Rows running (line) and waiting (dashes)", "", rows),
        Panel("Memory of the server", "MB", [Line(medians("memory"), GREY)]),
        Panel("Open files of the server", "", [Line(medians("files"), GREY)]),
    ]
    return [p for p in panels if not all(math.isnan(v) for line in p.lines for v in line.values)]


def _goods(run: Run, name: str) -> list[tuple[float, float]]:
    return [(run.since_start(one), float(one.meets(*run.slo))) for one in run.group(name)]


def _share(window: Sequence[float]) -> float:
    return 100 * sum(window) / len(window) if window else math.nan


def drawing(run: Run) -> str:
    """The picture. A window holds ten seconds, or a thirtieth of a short test."""
    count = max(10, min(60, round(run.seconds / 10)))
    shown = panels(run, count)
    bottom = TOP + len(shown) * (HEIGHT + GAP)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} '
            f'{bottom + 10}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(_title(run))}</text>',
    ]
    for i, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + WIDTH - 130 + 70 * i
        parts.append(f'<text x="{x}" y="22" fill="{colour}" font-weight="bold">{name}</text>')
    for i, panel in enumerate(shown):
        parts += _panel(panel, TOP + i * (HEIGHT + GAP), count)
    for i in range(6):
        place, label = LEFT + WIDTH * i / 5, _clock(run.seconds * i / 5, run.seconds)
        parts.append(f'<text x="{place:.0f}" y="{bottom - 24}" text-anchor="middle">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _title(run: Run) -> str:
    guided = f"{100 * float(run.about['guided_share']):.0f} % guided"
    if not run.rate:
        return f"Load: {run.about['users']} users, {guided} ({run.about['mix']})"
    load = run.about.get("load")
    share = f", {100 * load:.0f} % of the peak" if load else ""
    return f"Load: {run.rate:.2f} requests/s{share}, {guided}"


def _panel(panel: Panel, top: float, count: int) -> list[str]:
    present = [v for line in panel.lines for v in line.values if not math.isnan(v)]
    highest = 100.0 if panel.unit == "%" else _nice(max(present, default=1.0) or 1.0)
    unit = f", {panel.unit}" if panel.unit else ""
    parts = [
        f'<text x="{LEFT}" y="{top - 8}" font-weight="bold">{escape(panel.title + unit)}</text>'
    ]
    for share in (0.0, 0.5, 1.0):
        y = top + HEIGHT * (1 - share)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * highest:g}</text>'
        )
    if panel.limit is not None and panel.limit <= highest:
        y = top + HEIGHT * (1 - panel.limit / highest)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RED}" '
            'stroke-dasharray="2 4"/>'
        )
    for line in panel.lines:
        dashes = ' stroke-dasharray="5 3"' if line.dashed else ""
        for piece in _pieces(line.values):
            spots = [
                (LEFT + WIDTH * (i + 0.5) / count, top + HEIGHT * (1 - value / highest))
                for i, value in piece
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{line.colour}"{dashes} '
                'stroke-width="1.5" stroke-linecap="round"/>'
            )
    return parts


def _clock(seconds: float, longest: float) -> str:
    """In the unit that suits the length of the test."""
    unit, size = next((name, size) for name, size, least in UNITS if longest >= least)
    return f"{seconds / size:.3g} {unit}"


def _pieces(values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """Runs of values without a gap between them."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for i, value in enumerate(values):
        if not math.isnan(value):
            pieces[-1].append((i, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]
