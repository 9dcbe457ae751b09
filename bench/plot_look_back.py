"""Draws docs/look_back.svg, repetition against coherence, from bench/results.csv.

python -m bench.plot_look_back
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from bench.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "look_back.svg"
COLOURS = {
    "human": "#333333",
    "greedy": "#c0392b",
    "nucleus": "#5a9e6f",
    "typical": "#8a4f9e",
    "look_back": "#2563a8",
}
LEFT, TOP, WIDTH, HEIGHT, GAP = 70, 60, 400, 300, 50
FLOOR = 0.1
"""Percent; what repeats less is drawn here, for the axis is logarithmic."""
DOT, GLYPH = 5, 7
"""Half a point's width, and a letter's."""

Point = tuple[float, float]
"""rep-4 in percent, coherence."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def series() -> dict[str, dict[str, Point]]:
    """The newest points by case and side; of cases that differ in more than the kind, the newest.

    A case begins with the model and the kind of the openings, and the rest is how it was measured.
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


def drawing(cases: dict[str, dict[str, Point]]) -> str:
    """The picture as SVG: a panel for each case, on the same scales."""
    every = [point for points in cases.values() for point in points.values()]
    lowest = math.floor(10 * min(y for _, y in every)) / 10
    highest = math.ceil(10 * max(y for _, y in every)) / 10
    width = LEFT + len(cases) * (WIDTH + GAP) + 10
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 60}" '
            'font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="{LEFT}" y="20" font-size="14">Look-back decoding: coherence with the '
            "opening (upwards) against repetition</text>"
        ),
    ]
    for number, (case, points) in enumerate(cases.items()):
        parts += _panel(case, points, LEFT + number * (WIDTH + GAP), lowest, highest)
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    case: str, points: dict[str, Point], left: int, lowest: float, highest: float
) -> list[str]:
    def x_of(rep: float) -> float:
        return left + WIDTH * math.log10(max(rep, FLOOR) / FLOOR) / math.log10(100 / FLOOR)

    def y_of(coherence: float) -> float:
        return TOP + HEIGHT * (highest - coherence) / (highest - lowest)

    parts = [f'<text x="{left}" y="{TOP - 14}">{case}</text>']
    for tick in range(round(10 * lowest), round(10 * highest) + 1):
        y = y_of(tick / 10)
        parts.append(
            f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>'
        )
    for rep in (0.1, 1, 10, 100):
        label = f"≤ {rep}" if rep == FLOOR else f"{rep}"
        parts.append(
            f'<text x="{x_of(rep):.1f}" y="{TOP + HEIGHT + 20}" text-anchor="middle">{label}</text>'
        )
    parts.append(
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">repeated '
        "4-grams, % (the axis is logarithmic)</text>"
    )
    spots = {side: (x_of(rep), y_of(coherence)) for side, (rep, coherence) in points.items()}
    taken = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in spots.values()]
    for side, (x, y) in spots.items():
        kind = next(kind for kind in COLOURS if side.startswith(kind))
        label = side.removeprefix("look_back ")
        box = _place(x, y, label, left, taken)
        taken.append(box)
        # Widths are a guess, so a label is tied at the side where its point is.
        anchor, at = "middle", (box[0] + box[2]) / 2
        if box[0] > x:
            anchor, at = "start", box[0]
        elif box[2] < x:
            anchor, at = "end", box[2]
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="{COLOURS[kind]}" stroke-width="1.5" '
            f'fill="{"white" if kind == "human" else COLOURS[kind]}"/>'
            f'<text x="{at:.1f}" y="{box[3] - 3:.1f}" fill="{COLOURS[kind]}" '
            f'text-anchor="{anchor}">{label}</text>'
        )
    return parts


def _place(x: float, y: float, label: str, left: int, taken: list[Box]) -> Box:
    """Where a label stands nearest to its point, in the panel and clear of all that is taken."""
    width = GLYPH * len(label)
    places = [
        (x + across * (width / 2 + DOT + 2), y + 7 * down)
        for far in range(12)
        for down in ((far, -far) if far else (0,))
        for across in (1, -1, 0)
        if across or far > 1
    ]
    boxes = [(a - width / 2, b - 7, a + width / 2, b + 7) for a, b in places]
    inside = [box for box in boxes if left <= box[0] and box[2] <= left + WIDTH]
    free = (box for box in inside if not any(_overlap(box, other) for other in taken))
    return next(free, inside[0])


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def main() -> None:
    """Writes the picture."""
    TARGET.write_text(drawing(series()), encoding="utf-8")
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
