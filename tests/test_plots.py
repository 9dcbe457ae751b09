"""The common parts of the plots, and that those in docs/ are drawn from the committed figures."""

from __future__ import annotations

from importlib import import_module
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from bench import plot_kernels
from divserve import plots

BENCHES = ("kernels", "look_back", "overload", "switching")


@plots.styled()
def line() -> Figure:
    figure = plots.figure(400, 300)
    figure.add_subplot(title="a <b>").plot([1, 2], label="c")
    return figure


def texts(picture: str) -> list[str]:
    found = ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()) for text in found]


def test_the_same_figure_is_the_same_file_whatever_the_user_likes() -> None:
    picture = plots.svg(line())
    assert "a <b>" in texts(picture)
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "mine", "axes.grid": False}):
        assert plots.svg(line()) == picture
        assert matplotlib.rcParams["font.size"] == 20


@pytest.mark.parametrize("name", BENCHES)
def test_the_plots_in_docs_show_the_committed_figures(name: str) -> None:
    bench = import_module(f"bench.plot_{name}")
    found = bench.series()
    figure = bench.drawing(*found) if isinstance(found, tuple) else bench.drawing(found)
    shown = texts(bench.TARGET.read_text(encoding="utf-8"))
    assert texts(plots.svg(figure)) == shown
    assert len(shown) > 10


def test_a_plot_has_a_part_for_each_kind_of_hardware() -> None:
    def lines(hardware: str, back_end: str, vocab: int, micros: float) -> list[dict[str, str]]:
        metrics = {f"{back_end}, µs": micros, f"torch / {back_end}": 3.0}
        metrics[f"{back_end}, % of a copy"] = 50.0
        return [
            {"hardware": hardware, "case": f"1 pairs, V={vocab}", "metric": m, "value": str(v)}
            for m, v in metrics.items()
        ]

    old, new = lines("a", "numba", 49_152, 200.0), lines("b", "numba", 49_152, 100.0)
    gpu, other = lines("H", "triton", 151_936, 10.0), lines("H", "triton", 32_000, 5.0)
    found = plot_kernels.drawn([*old, *new, *gpu, *other])
    assert {name: hardware for name, (hardware, _) in found.items()} == {
        "numba": "b",
        "triton": "H",
    }
    assert found["triton"][1] == {"torch": [(1, 30.0)], "fused": [(1, 10.0)], "copy": [(1, 5.0)]}
    assert len(plot_kernels.drawing(found).axes) == 2
    assert [*plot_kernels.drawn(gpu)] == ["triton"]
