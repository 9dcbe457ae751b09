"""The methods' parameters, rows and reports, and what the registry promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from divserve.decoding import METHODS, STATISTICS, Decoding, Method, Row, Spec

GUIDE = {"guide": {"without": "the document"}}
adapter: TypeAdapter[Any] = TypeAdapter(Decoding)


def parse(**fields: Any) -> Any:
    """A method from a request body."""
    return adapter.validate_python(fields)


def errors(**fields: Any) -> list[tuple[str, str]]:
    """(path, type) of each validation error of a body."""
    with pytest.raises(ValidationError) as refused:
        parse(**fields)
    return [(".".join(map(str, e["loc"])), e["type"]) for e in refused.value.errors()]


@pytest.mark.parametrize("name", METHODS)
def test_registry_is_complete(name: str) -> None:
    """Every method has what the menu and the docs show of it."""
    method = METHODS[name]
    for text in (method.title, method.summary, method.formula, method.paper, method.needs):
        assert text.strip()
    assert method.url.startswith("https://")
    assert method.__doc__
    assert method.__doc__ != Method.__doc__
    described = {k for k, field in method.model_fields.items() if field.description}
    assert described == set(method.model_fields) - {"method"}
    parsed = parse(method=name, **GUIDE)
    figures = parsed.report(dict.fromkeys(STATISTICS, 0.5), 1.0)
    assert tuple(figures) == method.reports


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"method": "cad"}, Row(alpha=0.5)),
        ({"method": "cad", "alpha": 1}, Row(alpha=1.0)),
        ({"method": "adacad"}, Row(jsd_scale=1.0, floor=0.0)),
        (
            {"method": "adacad", "floor": 0.3, "jsd_base": "bits"},
            Row(jsd_scale=1 / math.log(2), floor=0.3),
        ),
        ({"method": "cfg"}, Row(alpha=0.5)),
        ({"method": "cfg", "scale": 0.25}, Row(alpha=-0.75)),
        ({"method": "kl_temperature"}, Row(kl_rate=1.0)),
        ({"method": "kl_temperature", "sigma": 0}, Row()),
        ({"method": "kl_temperature", "sigma": 4}, Row(kl_rate=0.25)),
    ],
)
def test_rows(fields: dict[str, Any], row: Row) -> None:
    """The defaults are the papers'."""
    assert parse(**GUIDE, **fields).row(1.0) == row


def test_lowest_temperature_is_the_papers_at_any_base() -> None:
    """T never falls below 1e-4, whatever the request's own temperature."""
    method = parse(method="kl_temperature", **GUIDE)
    assert method.row(0.5).min_factor * 0.5 == pytest.approx(1e-4)
    assert method.row(0.0) == Row()
    assert method.row(1e-5).min_factor == 1.0


def test_temperature_is_reported_as_used() -> None:
    statistics = {**dict.fromkeys(STATISTICS, 0.0), "factor": 0.5}
    method = parse(method="kl_temperature", **GUIDE)
    assert method.report(statistics, 0.8)["temperature"] == pytest.approx(0.4)
    assert method.report(statistics, 0.0)["temperature"] == 0.0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"method": "cat"}, ("", "union_tag_invalid")),
        ({}, ("", "union_tag_not_found")),
        ({"method": "cad"}, ("cad", "guide_missing")),
        ({"method": "cad", "beta": 1, **GUIDE}, ("cad.beta", "extra_forbidden")),
        ({"method": "cad", "alpha": -0.1, **GUIDE}, ("cad.alpha", "greater_than_equal")),
        ({"method": "cad", "alpha": math.nan, **GUIDE}, ("cad.alpha", "finite_number")),
        ({"method": "cad", "alpha": math.inf, **GUIDE}, ("cad.alpha", "finite_number")),
        ({"method": "cad", "alpha": "much", **GUIDE}, ("cad.alpha", "float_parsing")),
        ({"method": "adacad", "jsd_base": "bans", **GUIDE}, ("adacad.jsd_base", "literal_error")),
        ({"method": "cad", "guide": {}}, ("cad.guide", "guide_choice")),
        ({"method": "cad", "guide": {"without": ""}}, ("cad.guide", "guide_empty")),
        ({"method": "cad", "guide": {"without": []}}, ("cad.guide", "guide_empty")),
        ({"method": "cad", "guide": {"prompt": []}}, ("cad.guide", "guide_empty")),
        ({"method": "cad", "guide": {"without": ["a", ""]}}, ("cad.guide", "guide_empty")),
        (
            {"method": "cad", "guide": {"without": "a", "prompt": "b"}},
            ("cad.guide", "guide_choice"),
        ),
        ({"method": "cad", "guide": {"with": "a"}}, ("cad.guide.with", "extra_forbidden")),
    ],
)
def test_bad_bodies(fields: dict[str, Any], error: tuple[str, str]) -> None:
    assert error in errors(**fields)


def test_cfg_needs_no_guide() -> None:
    """Its natural guide is the last prompt token, as in the paper."""
    assert parse(method="cfg").guide is None


def test_spec_survives_the_wire() -> None:
    """What the front end packs is what the engine unpacks, −inf included."""
    spec = Spec(parse(method="cad", **GUIDE).row(1.0), [1, 2, 3])
    assert Spec.from_wire(spec.to_wire()) == spec
