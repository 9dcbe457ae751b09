"""Draws docs/kernels.svg from the last runs of bench.kernels in bench/results.csv.

Figures of two machines cannot be compared: each kind of device has a part of the picture, drawn for
the machine that measured last.

    python -m bench.plot_kernels
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from divserve import plots
from loadtest.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "kernels.svg"
VOCABULARIES = {"numba": 49_152, "triton": 151_936}
"""Back ends of a CPU and of a GPU, and the vocabulary that is drawn for each."""
COLOURS = {
    "torch": plots.GREY,
    "torch.compile": plots.ORANGE,
    "fused": plots.BLUE,
    "copy": plots.GREEN,
}

Sides = dict[str, list[tuple[int, float]]]
"""``(pairs, µs)`` for every side."""


def series() -> dict[str, tuple[str, Sides]]:
    """The hardware that measured last and its newest figures, by back end."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["bench"] == "kernels"]
    return drawn(lines)


def drawn(lines: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, Sides]]:
    """`series` of these lines of bench/results.csv."""
    found = {}
    for back_end, vocab in VOCABULARIES.items():
        machines = [
            line["hardware"]
            for line in lines
            if line["metric"] == f"{back_end}, µs" and line["case"].endswith(f"V={vocab}")
        ]
        if machines:
            newest = {
                (int(line["case"].split()[0]), line["metric"]): float(line["value"])
                for line in lines
                if line["hardware"] == machines[-1] and line["case"].endswith(f"V={vocab}")
            }
            found[back_end] = machines[-1], _sides(newest, back_end)
    return found


def _sides(newest: Mapping[tuple[int, str], float], back_end: str) -> Sides:
    found: Sides = {name: [] for name in COLOURS}
    for (pairs, metric), micros in newest.items():
        if metric != f"{back_end}, µs":
            continue
        found["fused"].append((pairs, micros))
        found["torch"].append((pairs, micros * newest[pairs, f"torch / {back_end}"]))
        found["copy"].append((pairs, micros * newest[pairs, f"{back_end}, % of a copy"] / 100))
        if ratio := newest.get((pairs, f"compiled / {back_end}")):
            found["torch.compile"].append((pairs, micros * ratio))
    return {name: sorted(points) for name, points in found.items() if points}


@plots.styled()
def drawing(parts: Mapping[str, tuple[str, Sides]]) -> Figure:
    """Time of a call against the number of pairs, with a line for each side, by hardware."""
    figure = plots.figure(720, 400 * len(parts))
    axes = figure.subplots(len(parts), squeeze=False)[:, 0]
    for place, (back_end, (hardware, sides)) in zip(axes, parts.items(), strict=True):
        vocab = VOCABULARIES[back_end]
        place.set_title(f"One guidance call (AdaCAD), V = {vocab:,}, {hardware}")
        _draw(place, sides)
    return figure


def _draw(axes: Axes, sides: Sides) -> None:
    axes.set(xlabel="pairs", ylabel="time of a call", xscale="log", yscale="log")
    for name, points in sides.items():
        pairs, micros = zip(*points, strict=True)
        seconds = [value / 1e6 for value in micros]
        axes.plot(pairs, seconds, "o-", label=name, color=COLOURS[name])
    ticks = sorted({pairs for points in sides.values() for pairs, _ in points})
    axes.set_xticks(ticks, map(str, ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.legend()


if __name__ == "__main__":
    TARGET.write_text(plots.svg(drawing(series())), encoding="utf-8")
    print(f"wrote {TARGET.name}")
