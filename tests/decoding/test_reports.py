"""What each method reports for a token, each figure from its own statistic."""

from __future__ import annotations

import math
from typing import Any

import pytest

from divserve.decoding import METHODS, STATISTICS, Program

GUIDE = {"guide": {"without": "the document"}}
OWN = {name: float(10 + place) for place, name in enumerate(STATISTICS)}
"""A different value for every statistic."""
CONTRAST = {name: OWN[name] for name in ("entropy", "kl", "jsd", "alpha")}
AMATEUR = {**CONTRAST, "candidates": OWN["kept"], "overlap": OWN["overlap"], "agree": OWN["agree"]}
SCALED = {name: OWN[name] for name in ("entropy", "kl", "jsd")}


@pytest.mark.parametrize(
    ("body", "figures"),
    [
        ({"method": "cad", **GUIDE}, CONTRAST),
        ({"method": "adacad", **GUIDE}, CONTRAST),
        ({"method": "coiecd", **GUIDE}, CONTRAST),
        ({"method": "instructive"}, CONTRAST),
        ({"method": "linear_alignment", **GUIDE}, {**CONTRAST, "candidates": OWN["kept"]}),
        ({"method": "uscd", **GUIDE}, {**CONTRAST, "sum_p2": OWN["sum_p2"]}),
        ({"method": "cfg", "scale": 2.5}, {**SCALED, "scale": 2.5}),
        ({"method": "kl_temperature", **GUIDE}, {**SCALED, "temperature": OWN["factor"] / 2}),
        (
            {"method": "entropy_temperature"},
            {"entropy": OWN["entropy"], "temperature": OWN["factor"] / 2},
        ),
        (
            {"method": "vdgd", "grounding": "a"},
            {"entropy": OWN["entropy"], "candidates": OWN["kept"]},
        ),
        ({"method": "contrastive"}, AMATEUR),
        ({"method": "proxy_tuning"}, AMATEUR),
        ({"method": "dexperts"}, AMATEUR),
        ({"method": "entropy_switch"}, {"entropy_bits": OWN["entropy"] / math.log(2)}),
    ],
)
def test_figures(body: dict[str, Any], figures: dict[str, float]) -> None:
    method = METHODS[body["method"]].model_validate(body)
    assert method.report(OWN, 0.5) == pytest.approx(figures)


@pytest.mark.parametrize(
    ("body", "needs", "given"),
    [
        ({"method": "cad", **GUIDE}, True, ["the document"]),
        ({"method": "cad", "guide": {"without": ["a", "b"]}}, True, ["a", "b"]),
        ({"method": "cad", "guide": {"prompt": "a"}}, True, []),
        ({"method": "cfg"}, False, None),
        ({"method": "instructive"}, False, None),
        ({"method": "contrastive"}, False, None),
    ],
)
def test_guides(body: dict[str, Any], needs: bool, given: list[str] | None) -> None:
    cls = METHODS[body["method"]]
    guide = cls.model_validate(body).guide
    assert cls.needs_guide() is needs
    assert (None if guide is None else guide.texts()) == given


def test_parameters_are_the_methods_own() -> None:
    assert METHODS["cad"].parameters() == {"alpha": 0.5}
    assert METHODS["entropy_switch"].parameters() == {
        "threshold": 1.0, "window": 5, "min_run": 10, "start": "small",
    }  # fmt: skip


def test_lowest_temperature_is_the_papers_at_any_base() -> None:
    """T never falls below 1e-4, whatever the request's temperature."""
    method = METHODS["kl_temperature"].model_validate({"method": "kl_temperature", **GUIDE})
    assert method.program(0.5).min_factor * 0.5 == pytest.approx(1e-4)
    assert method.program(0.0) == Program()
    assert method.program(1e-5).min_factor == 1.0


def test_temperature_is_reported_as_used() -> None:
    statistics = {**dict.fromkeys(STATISTICS, 0.0), "factor": 0.5}
    method = METHODS["kl_temperature"].model_validate({"method": "kl_temperature", **GUIDE})
    assert method.report(statistics, 0.8)["temperature"] == pytest.approx(0.4)
    assert method.report(statistics, 0.0)["temperature"] == 0.0
