"""Draws docs/kernels.svg from the last run of bench.kernels in bench/results.csv.

python -m bench.plot_kernels
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "kernels.svg"
VOCABULARY = 49_152
COLOURS = {"torch": "#888888", "torch.compile": "#d08a2e", "fused": "#2563a8", "copy": "#5a9e6f"}
LEFT, TOP, WIDTH, HEIGHT = 70, 40, 520, 300


def series() -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """The hardware, and (pairs, µs) of every side at `VOCABULARY`, newest figures first."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["bench"] == "kernels"]
    # Figures of two machines say nothing side by side: the last one to measure is drawn.
    hardware = lines[-1]["hardware"]
    newest = {
        (int(line["case"].split()[0]), line["metric"]): float(line["value"])
        for line in lines
        if line["hardware"] == hardware and line["case"].endswith(f"V={VOCABULARY}")
    }
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in COLOURS}
    for (pairs, metric), micros in newest.items():
        if not metric.endswith(", µs"):
            continue
        back_end = metric.removesuffix(", µs")
        found["fused"].append((pairs, micros))
        found["torch"].append((pairs, micros * newest[pairs, f"torch / {back_end}"]))
        found["copy"].append((pairs, micros * newest[pairs, f"{back_end}, % of a copy"] / 100))
        if ratio := newest.get((pairs, f"compiled / {back_end}")):
            found["torch.compile"].append((pairs, micros * ratio))
    return hardware, {name: sorted(points) for name, points in found.items() if points}


def place(pairs: int, micros: float, low: int, high: int) -> tuple[float, float]:
    """Where a point is drawn; both axes are logarithmic."""
    x = LEFT + WIDTH * math.log2(pairs) / 8
    y = TOP + HEIGHT * (high - math.log10(micros)) / (high - low)
    return x, y


def drawing(hardware: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """The picture as SVG."""
    values = [micros for points in lines.values() for _, micros in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 120} '
            f'{TOP + HEIGHT + 60}" font-family="sans-serif" font-size="12">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            f'<text x="{LEFT}" y="20" font-size="14">One guidance call (AdaCAD), V = '
            f"{VOCABULARY:,}, {hardware}</text>"
        ),
    ]
    for exponent in range(low, high + 1):
        _, y = place(1, 10.0**exponent, low, high)
        label = f"{10**exponent:g} µs" if exponent < 3 else f"{10 ** (exponent - 3):g} ms"
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for pairs, _ in next(iter(lines.values())):
        x, _ = place(pairs, 1.0, low, high)
        y = TOP + HEIGHT + 20
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{pairs}</text>')
    parts.append(
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">pairs</text>'
    )
    for name, points in lines.items():
        spots = [place(pairs, micros, low, high) for pairs, micros in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        colour, (x, y) = COLOURS[name], spots[-1]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(drawing(*series()), encoding="utf-8")
    print(f"wrote {TARGET.name}")
