"""The methods' parameters, programs and reports, and the registry."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from divserve.decoding import (
    METHODS,
    STATISTICS,
    Decoding,
    Form,
    Instructive,
    Method,
    Program,
)  # fmt: skip

GUIDE = {"guide": {"without": "the document"}}
NEEDS: dict[str, Any] = {
    "vdgd": {"grounding": "A tower."},
    "entropy_temperature": {},
    "contrastive": {},
    "proxy_tuning": {},
    "dexperts": {},
    "entropy_switch": {},
    "look_back": {},
}
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
    """Every method has everything that the menu and the docs show."""
    method = METHODS[name]
    for text in (method.title, method.summary, method.formula, method.paper, method.needs):
        assert text.strip()
    assert method.url.startswith("https://")
    assert method.__doc__
    assert method.__doc__ != Method.__doc__
    described = {k for k, field in method.model_fields.items() if field.description}
    assert described == set(method.model_fields) - {"method"}
    assert set(method.neutral or ()) <= set(method.parameters())
    parsed = parse(method=name, **NEEDS.get(name, GUIDE))
    figures = parsed.report(dict.fromkeys((*STATISTICS, "kl_min", "alarm"), 0.5), 1.0)
    assert tuple(figures) == method.reports


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"method": "cad"}, Program(alpha=0.5)),
        ({"method": "cad", "alpha": 1}, Program(alpha=1.0)),
        ({"method": "adacad"}, Program(jsd_scale=1.0, floor=0.0)),
        (
            {"method": "adacad", "floor": 0.3, "jsd_base": "bits"},
            Program(jsd_scale=1 / math.log(2), floor=0.3),
        ),
        ({"method": "cfg"}, Program(alpha=0.5)),
        ({"method": "cfg", "scale": 0.25}, Program(alpha=-0.75)),
        ({"method": "coiecd"}, Program(form=Form.SWITCH, alpha=1.0, log_ratio=math.log(4))),
        ({"method": "coiecd", "ratio": 1}, Program()),
        ({"method": "instructive"}, Program(guide_weight=-0.3)),
        (
            {"method": "linear_alignment"},
            Program(alpha=2.0, top_p=0.8, top_p_temperature=1.0),
        ),
        ({"method": "linear_alignment", "nucleus": 1, "ratio": 3}, Program(alpha=3.0)),
        (
            {"method": "uscd"},
            Program(form=Form.PROBABILITY, guide_weight=-0.7, gate=0.8, min_prob=2 / 3),
        ),
        ({"method": "uscd", "weight": 0}, Program()),
        ({"method": "kl_temperature"}, Program(kl_rate=1.0)),
        ({"method": "kl_temperature", "sigma": 0}, Program()),
        ({"method": "kl_temperature", "sigma": 4}, Program(kl_rate=0.25)),
    ],
)
def test_rows(fields: dict[str, Any], row: Program) -> None:
    """The defaults are the papers'."""
    assert parse(**GUIDE, **fields).program(1.0) == row


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"method": "cat"}, ("one", "union_tag_invalid")),
        ({}, ("one", "union_tag_not_found")),
        ({"method": "cad"}, ("one.cad", "guide_missing")),
        ({"method": "cad", "beta": 1, **GUIDE}, ("one.cad.beta", "extra_forbidden")),
        ({"method": "cad", "alpha": -0.1, **GUIDE}, ("one.cad.alpha", "greater_than_equal")),
        ({"method": "cad", "alpha": math.nan, **GUIDE}, ("one.cad.alpha", "finite_number")),
        ({"method": "cad", "alpha": math.inf, **GUIDE}, ("one.cad.alpha", "finite_number")),
        ({"method": "cad", "alpha": "much", **GUIDE}, ("one.cad.alpha", "float_parsing")),
        (
            {"method": "adacad", "jsd_base": "bans", **GUIDE},
            ("one.adacad.jsd_base", "literal_error"),
        ),
        ({"method": "cad", "guide": {}}, ("one.cad.guide", "guide_choice")),
        ({"method": "cad", "guide": {"without": ""}}, ("one.cad.guide", "guide_empty")),
        ({"method": "cad", "guide": {"without": []}}, ("one.cad.guide", "guide_empty")),
        ({"method": "cad", "guide": {"prompt": []}}, ("one.cad.guide", "guide_empty")),
        ({"method": "cad", "guide": {"without": ["a", ""]}}, ("one.cad.guide", "guide_empty")),
        (
            {"method": "cad", "guide": {"without": "a", "prompt": "b"}},
            ("one.cad.guide", "guide_choice"),
        ),
        ({"method": "cad", "guide": {"with": "a"}}, ("one.cad.guide.with", "extra_forbidden")),
    ],
)
def test_bad_bodies(fields: dict[str, Any], error: tuple[str, str]) -> None:
    assert error in errors(**fields)


def test_cfg_needs_no_guide() -> None:
    """Its natural guide is the last prompt token, as in the paper."""
    assert parse(method="cfg").guide is None


def test_methods_without_a_guide() -> None:
    """VDGD replaces the logits with the grounding vector; EDT's rate is in nats and halvings."""
    vdgd = parse(method="vdgd", grounding="A tower.")
    assert vdgd.program(1.0) == Program(
        primary_weight=0.0, third_weight=1.0, top_p=0.5, top_p_temperature=0.5
    )
    subtracting = parse(method="vdgd", grounding="A tower.", score="subtract")
    assert subtracting.program(1.0).primary_weight == 1.0
    edt = parse(method="entropy_temperature")
    assert edt.program(1.0).entropy_rate == pytest.approx(-0.1 * math.log2(0.8))
    assert (
        edt.program(0.0) == parse(method="entropy_temperature", theta=0).program(1.0) == Program()
    )
    assert edt.program(0.5).min_factor * 0.5 == pytest.approx(1e-4)
    same = parse(method="entropy_temperature", theta=2, base=1)
    assert same.program(1.0) == Program()
    hot = parse(method="entropy_temperature", theta=1, base=0.5)
    assert hot.program(1.0).entropy_rate == 1.0


def test_the_papers_gate_is_converted_at_its_own_vocabulary() -> None:
    """s0 0.005 is Σp² 0.80, 0.0035 is 0.39."""
    gates = [parse(method="uscd", s0=s0, **GUIDE).program(1.0).gate for s0 in (0.005, 0.0035)]
    assert gates == pytest.approx([0.8004, 0.3922], abs=1e-4)
    assert ("one.uscd", "gate_choice") in errors(method="uscd", s0=0.005, uncertainty=0.5, **GUIDE)


def test_a_nucleus_of_everything_has_no_temperature() -> None:
    whole = parse(method="linear_alignment", nucleus=1, ratio=3, **GUIDE)
    assert whole.program(0.0) == whole.program(0.7) == Program(alpha=3.0)


def test_the_nucleus_of_a_greedy_request_has_the_scripts_temperature() -> None:
    method = parse(method="linear_alignment", **GUIDE)
    assert method.program(0.0).top_p_temperature == 0.5
    assert method.program(0.7).top_p_temperature == 0.7


@pytest.mark.parametrize(
    ("noise", "words"), [("opposite", 14), ("null", 0), ("shuffle", 3), ("random_words", 1)]
)
def test_noises(noise: str, words: int) -> None:
    """Noise is seeded: the same text gives the same noise, and another seed a different one."""
    made = [
        parse(method="instructive", noise=noise, noise_seed=seed).distorted("one two three four")
        for seed in (1, 1, 2, 3, 4)
    ]
    assert [len(text.split()) for text in made] == [words] * 5
    assert made[0] == made[1]
    assert (len(set(made)) > 1) == (noise in ("shuffle", "random_words"))
    assert parse(method="instructive").distorted("a").startswith("Always respond with the opposite")
    if noise == "shuffle":
        assert set(made[0].split()) < {"one", "two", "three", "four"}


def test_a_guide_excludes_a_noise() -> None:
    assert ("one.instructive", "guide_choice") in errors(
        method="instructive", noise="null", **GUIDE
    )
    assert isinstance(parse(method="instructive", **GUIDE), Instructive)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({"method": "contrastive"}, (1.5, -0.5, 0)),
        ({"method": "contrastive", "beta": 1, "amateur_temperature": 0.5}, (2, -2, 0)),
        ({"method": "contrastive", "form": "original"}, (1, -1, 0)),
        (
            {"method": "contrastive", "form": "original", "amateur_temperature": 0.5},
            (1, -2, 0),
        ),
        ({"method": "contrastive", "beta": 0}, (1, 0, 0)),
        ({"method": "proxy_tuning"}, (1, -1, 1)),
        ({"method": "dexperts"}, (1, -2, 2)),
        ({"method": "dexperts", "alpha": 0}, (1, 0, 0)),
    ],
)
def test_weights_of_models(fields: dict[str, Any], weights: tuple[float, ...]) -> None:
    """The program as the kernel reads it: weights of the served, the amateur and the tuned
    model."""
    row = parse(**fields).program(1.0)
    a, b = row.primary_weight + row.alpha, row.guide_weight - row.alpha
    assert (a, b, row.third_weight) == pytest.approx(weights)


def test_lines_of_the_contrasts_of_models() -> None:
    assert parse(method="contrastive").program(1.0).log_plausibility == pytest.approx(math.log(0.1))
    assert parse(method="contrastive", alpha=0).program(1.0).log_plausibility == -math.inf
    assert not parse(method="contrastive", alpha=0).program(1.0).drops_tokens()
    assert parse(method="dexperts").program(1.0).top_p == 0.9
    assert not parse(method="proxy_tuning").program(1.0).drops_tokens()
    assert ("one.contrastive", "beta_unused") in errors(
        method="contrastive", form="original", beta=0.5
    )


def test_methods_without_a_second_stream_take_no_guide() -> None:
    assert ("one.entropy_temperature", "guide_unused") in errors(
        method="entropy_temperature", **GUIDE
    )
    assert ("one.vdgd", "guide_unused") in errors(method="vdgd", grounding="a", **GUIDE)
    assert ("one.vdgd.grounding", "missing") in errors(method="vdgd")
