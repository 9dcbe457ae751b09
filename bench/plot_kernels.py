"""Draws docs/kernels.svg from the last run of bench.kernels in bench/results.csv.

python -m bench.plot_kernels
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from divserve import plots
from loadtest.record import RESULTS

TARGET = Path(__file__).parents[1] / "docs" / "kernels.svg"
VOCABULARY = 49_152
COLOURS = {
    "torch": plots.GREY,
    "torch.compile": plots.ORANGE,
    "fused": plots.BLUE,
    "copy": plots.GREEN,
}


def series() -> tuple[str, dict[str, list[tuple[int, float]]]]:
    """The hardware, and (pairs, µs) for every side at `VOCABULARY`, newest figures first."""
    with RESULTS.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["bench"] == "kernels"]
    # Figures of two machines cannot be compared: only the one that measured last is drawn.
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


@plots.styled()
def drawing(hardware: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Time of a call against the number of pairs, with a line for each side."""
    figure = plots.figure(720, 400)
    axes = figure.add_subplot(
        title=f"One guidance call (AdaCAD), V = {VOCABULARY:,}, {hardware}",
        xlabel="pairs",
        ylabel="time of a call",
        xscale="log",
        yscale="log",
    )
    for name, points in lines.items():
        pairs, micros = zip(*points, strict=True)
        seconds = [value / 1e6 for value in micros]
        axes.plot(pairs, seconds, "o-", label=name, color=COLOURS[name])
    ticks = sorted({pairs for points in lines.values() for pairs, _ in points})
    axes.set_xticks(ticks, map(str, ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.legend()
    return figure


if __name__ == "__main__":
    TARGET.write_text(plots.svg(drawing(*series())), encoding="utf-8")
    print(f"wrote {TARGET.name}")
