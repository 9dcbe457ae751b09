"""The common parts of the plots, and that those in docs/ are drawn from the committed figures."""

from __future__ import annotations

from importlib import import_module
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

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
