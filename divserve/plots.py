"""The style of plots and their SVG: matplotlib without pyplot, whose figures are global.

matplotlib comes with the extra ``plots`` and is only imported when something is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BLUE", "COLOURS", "GREEN", "GREY", "ORANGE", "PURPLE", "RED"]
__all__ += ["figure", "is_installed", "styled", "svg"]

BLUE, ORANGE, GREEN, PURPLE = COLOURS = ("#2563a8", "#d08a2e", "#5a9e6f", "#8a4f9e")
GREY, RED = "#777777", "#b3261e"
STYLE: dict[Any, Any] = {
    # A background of its own: the pages that show a plot may be dark.
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    # The layout uses the first one, which matplotlib includes; the reader sees the first one that
    # is installed.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(color={COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.markersize": 5,
    # The same figures make the same file; text stays text.
    "svg.hashsalt": "divserve",
    "svg.fonttype": "none",
}
METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""Without metadata that changes with the date or with matplotlib's version."""


def is_installed() -> bool:
    """Whether matplotlib is installed; does not import it."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def styled() -> Iterator[None]:
    """`STYLE` on top of matplotlib's defaults, whatever the user's ``matplotlibrc`` says.

    Decorates every function that makes axes.
    """
    # matplotlib warns when building its font cache takes long.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@styled()
def figure(width: float, height: float) -> Figure:
    """An empty figure; its size is in CSS pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 96, height / 96))


@styled()
def svg(figure: Figure) -> str:
    """A figure as an ``<svg>`` element, for a file or inside HTML."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=METADATA)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
