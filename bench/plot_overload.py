"""Draws docs/overload.svg, good answers against requests, from bench/results.csv.

python -m bench.plot_overload
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from bench.record import RESULTS

__all__ = ["draw"]

TARGET = Path(__file__).parents[1] / "docs" / "overload.svg"
COLOURS = ("#2563a8", "#d08a2e", "#5a9e6f", "#8a4f9e")
LEFT, TOP, WIDTH, HEIGHT = 60, 40, 520, 260
OFFERED, GOOD = "requests/s", "good answers/s"

Points = list[tuple[float, float]]
"""Requests a second, good answers a second."""


def series() -> tuple[str, dict[str, Points]]:
    """Hardware of the last run, and the points of every case measured on it, the newest of each."""
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


def drawing(hardware: str, cases: dict[str, Points]) -> str:
    """The picture as SVG: requests on a logarithmic axis, for the flood is ten times the peak."""
    every = [point for points in cases.values() for point in points]
    low, high = (math.log(edge(x for x, _ in every)) for edge in (min, max))
    top = math.ceil(max(y for _, y in every))

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * (math.log(x) - low) / (high - low), TOP + HEIGHT * (1 - y / top)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 40} '
            f'{TOP + HEIGHT + 60}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Good answers a second, {hardware}</text>',
    ]
    for tick in range(top + 1):
        _, y = place(math.e**low, tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for step in range(6):
        value = math.exp(low + (high - low) * step / 5)
        x, _ = place(value, 0)
        label = f'<text x="{x:.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{value:.1f}</text>'
        parts.append(label)
    parts.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">requests a '
        "second</text>"
    )
    for i, (case, points) in enumerate(cases.items()):
        colour, spots = COLOURS[i % len(COLOURS)], [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        x, y = LEFT + WIDTH - 8, TOP + 16 * (i + 1)
        parts.append(f'<text x="{x}" y="{y}" text-anchor="end" fill="{colour}">{case}</text>')
    return "\n".join([*parts, "</svg>", ""])


def draw() -> None:
    """Writes the picture."""
    TARGET.write_text(drawing(*series()), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    draw()
