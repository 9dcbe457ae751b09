"""The picture of a run, and the estimate in its report."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

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
    picture = ElementTree.fromstring(drawing("a <b> & c", CURVE))
    texts = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert texts[0] == "a <b> & c"
    assert {"held-out KL", "training loss", "acceptance", "agreement", "1,000"} <= set(texts)
    lines = [
        [tuple(map(float, spot.split(","))) for spot in line.attrib["points"].split()]
        for line in picture.iter(f"{SVG}polyline")
    ]
    assert [len(line) for line in lines] == [3, 2, 3, 3]
    kl, loss, acceptance, agreement = lines
    # The upper axis ends at 20 nats, the lower one at 50 %; they are 150 high and 460 wide.
    assert kl == [(60, 100), (290, 152.5), (520, 167.5)]
    assert loss == [(290, 145), (520, 160)]
    assert acceptance == [(60, 387), (290, 330), (520, 315)]
    assert agreement == [(60, 390), (290, 315), (520, 300)]


def test_a_curve_of_one_point_and_nothing_to_show() -> None:
    picture = drawing("none", [Point(0, 0.0, None, Figures(0.0, 1.0, 1.0))])
    assert len(list(ElementTree.fromstring(picture).iter(f"{SVG}polyline"))) == 3


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.99])
def test_tokens_of_a_verification(acceptance: float) -> None:
    closed = (1 - acceptance**5) / (1 - acceptance)
    assert speculative_tokens(acceptance) == pytest.approx(closed)
    assert speculative_tokens(1.0) == 5
