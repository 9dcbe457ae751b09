"""Draws docs/switching.svg, the frontier of switching, from bench/results.csv.

python -m bench.plot_switching
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from bench.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "switching.svg"
COLOURS = ("#2563a8", "#d08a2e", "#5a9e6f", "#8a4f9e")
LEFT, TOP, WIDTH, HEIGHT = 70, 40, 520, 300

Point = tuple[str, float, float]
"""Label, seconds an answer ÷ the large model's, share of right answers."""


def series() -> dict[str, list[Point]]:
    """The newest points of every pair of models."""
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
    return {case: sorted(points, key=_from_small_to_large) for case, points in found.items()}


def _from_small_to_large(point: Point) -> float:
    """The small model alone, then falling thresholds, then the large model alone."""
    ends = {"small": -math.inf, "large": math.inf}
    label = point[0]
    return ends[label] if label in ends else -float(label)


def drawing(pairs: dict[str, list[Point]]) -> str:
    """The picture as SVG."""
    widest = max(1.2, *(x for points in pairs.values() for _, x, _ in points))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} '
            f'{TOP + HEIGHT + 60}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="{LEFT}" y="20" font-size="14">Switching: right answers against time, by '
            "threshold in bits</text>"
        ),
    ]
    for tick in range(0, 11, 2):
        y = TOP + HEIGHT * (1 - tick / 10)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10 * tick} %</text>'
        )
    for tick in range(int(widest / 0.2) + 1):
        x = LEFT + WIDTH * tick * 0.2 / widest
        y = TOP + HEIGHT + 20
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{0.2 * tick:.1f}</text>')
    parts.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">seconds an '
        "answer ÷ the large model's</text>"
    )
    for i, (case, points) in enumerate(pairs.items()):
        colour = COLOURS[i % len(COLOURS)]
        spots = [(LEFT + WIDTH * x / widest, TOP + HEIGHT * (1 - y)) for _, x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1"/>')
        for (label, *_), (x, y) in zip(points, spots, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" fill="{colour}">{label}</text>')
        y = TOP + HEIGHT - 12 - 16 * i
        parts.append(
            f'<text x="{LEFT + WIDTH - 8}" y="{y}" text-anchor="end" fill="{colour}">{case}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """Writes the picture."""
    TARGET.write_text(drawing(series()), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
