"""Draws the curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from divserve import plots
from divserve.distill.state import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["drawing"]


@plots.styled()
def drawing(title: str, curve: Sequence[Point]) -> Figure:
    """The figure: nats at the top, shares at the bottom, over the tokens trained on."""
    from matplotlib.ticker import MaxNLocator

    figure = plots.figure(660, 440)
    # Model names are plain text, even with dollar signs in them.
    figure.suptitle(title, parse_math=False)
    nats, shares = figure.subplots(2, 1, sharex=True)
    lines: list[tuple[Axes, str, str, list[float | None]]] = [
        (nats, "held-out KL", plots.BLUE, [point.figures.kl for point in curve]),
        (nats, "training loss", plots.GREY, [point.loss for point in curve]),
        (shares, "acceptance", plots.GREEN, [100 * point.figures.acceptance for point in curve]),
        (shares, "agreement", plots.ORANGE, [100 * point.figures.agreement for point in curve]),
    ]
    for axes, name, colour, values in lines:
        spots = [(p.tokens, y) for p, y in zip(curve, values, strict=True) if y is not None]
        if spots:
            tokens, known = zip(*spots, strict=True)
            axes.plot(tokens, known, "o-", color=colour, label=name, clip_on=False)
    nats.set(ylabel="nats a token", ylim=(0, None))
    shares.set(ylabel="% of tokens", ylim=(0, None), xlabel="tokens trained on")
    shares.set_xlim(0, max(curve[-1].tokens, 1))
    shares.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    shares.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (nats, shares):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
