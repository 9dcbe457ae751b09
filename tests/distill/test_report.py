"""The picture of a run, and the estimate in its report."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from divserve import plots
from divserve.distill.curve import drawing
from divserve.distill.evaluate import Figures
from divserve.distill.report import speculative_tokens
from divserve.distill.state import Point

SVG = "{http://www.w3.org/2000/svg}"
CURVE = [
    Point(0, 0.0, None, Figures(12.0, 0.01, 0.0)),
    Point(500, 10.0, 6.0, Figures(5.0, 0.2, 0.25)),
    Point(1000, 20.0, 4.0, Figures(3.0, 0.25, 0.3)),
]


def test_the_curve_shows_every_point_where_it_belongs() -> None:
    nats, shares = drawing("two", CURVE).axes
    lines = {
        line.get_label(): np.asarray(line.get_xydata()).tolist()
        for line in [*nats.lines, *shares.lines]
    }
    assert lines == {
        "held-out KL": [[0, 12], [500, 5], [1000, 3]],
        "training loss": [[500, 6], [1000, 4]],
        "acceptance": [[0, 1], [500, 20], [1000, 25]],
        "agreement": [[0, 0], [500, 25], [1000, 30]],
    }


def test_the_file_is_the_same_each_time_and_its_text_is_text() -> None:
    picture = plots.svg(drawing("a <b> & $c$", CURVE))
    assert picture == plots.svg(drawing("a <b> & $c$", CURVE))
    texts = [
        "".join(text.itertext()) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")
    ]
    assert {"a <b> & $c$", "held-out KL", "training loss", "acceptance", "1,000"} <= set(texts)


def test_a_curve_of_one_point_and_nothing_to_show() -> None:
    figure = drawing("none", [Point(0, 0.0, None, Figures(0.0, 1.0, 1.0))])
    assert sum(len(axes.lines) for axes in figure.axes) == 3
    ElementTree.fromstring(plots.svg(figure))


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.99])
def test_tokens_of_a_verification(acceptance: float) -> None:
    closed = (1 - acceptance**5) / (1 - acceptance)
    assert speculative_tokens(acceptance) == pytest.approx(closed)
    assert speculative_tokens(1.0) == 5
