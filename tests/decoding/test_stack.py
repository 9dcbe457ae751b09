"""Stacks: what may be combined, in which order, and what reaches the engine."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from divserve.decoding import STATISTICS, Decoding, Form, Program, Stack, Switch
from divserve.decoding.stack import share_guide

GUIDE = {"guide": {"without": "the document"}}
OTHER = {"guide": {"without": "the question"}}
CAD = {"method": "cad", **GUIDE}
USCD = {"method": "uscd", **GUIDE}
KL = {"method": "kl_temperature", **GUIDE}
EDT = {"method": "entropy_temperature"}
VDGD = {"method": "vdgd", "grounding": "A tower."}
ADDED = {**VDGD, "score": "subtract"}
ALIGN = {"method": "linear_alignment", **GUIDE}
adapter: TypeAdapter[Any] = TypeAdapter(Decoding)


def stack(*bodies: dict[str, Any]) -> Stack:
    return Stack(adapter.validate_python(list(bodies)))


@pytest.mark.parametrize(
    ("traces", "asked", "by_token"),
    [
        ((False, False), False, False),
        ((False, True), True, True),
        (("true", {}), True, True),
        (({"at": "token"}, 1), True, True),
        ((True, "final"), True, False),
        (({"at": "final"}, False), True, False),
    ],
)
def test_one_trace_of_all(traces: tuple[Any, Any], asked: bool, by_token: bool) -> None:
    """``"final"`` precedes ``true``."""
    made = stack(*({**body, "trace": t} for body, t in zip((CAD, KL), traces, strict=True)))
    assert (made.trace, made.trace_by_token) == (asked, by_token)


def test_the_largest_number_of_likeliest_tokens() -> None:
    assert stack({**CAD, "trace": {"top": 3}}, {**KL, "trace": {"top": 5, "at": "final"}}).top == 5
    asked = stack({**CAD, "trace": {"top": 3}}, {**KL, "trace": True})
    assert (asked.top, asked.trace_by_token) == (3, True)
    assert asked.spec(1.0, [[1], [1]]).top == 3
    assert stack({**CAD, "trace": True}, KL).top == stack(CAD).spec(1.0, [[1]]).top == 0


@pytest.mark.parametrize(
    ("bodies", "two_seconds", "names"),
    [
        ((CAD,), False, "guide"),
        ((KL,), False, "guide"),
        ((EDT,), False, ""),
        ((VDGD,), False, ""),
        ((CAD, ADDED, EDT), False, "guide"),
        ((CAD, KL), False, "guide"),
        ((CAD, {**KL, **OTHER}), True, "guide kl_temperature.guide"),
        (({"method": "contrastive"},), False, "amateur"),
        (({"method": "dexperts"}, EDT), False, "amateur tuned"),
        (({"method": "proxy_tuning"}, KL), True, "kl_temperature.guide amateur tuned"),
        (({"method": "entropy_switch", "threshold": 1.0},), False, ""),
        (({"method": "look_back", "threshold": 1.0},), False, ""),
    ],
)
def test_streams_of_a_trace(
    bodies: tuple[dict[str, Any], ...], two_seconds: bool, names: str
) -> None:
    assert stack(*bodies).streams(two_seconds) == ("primary", *names.split(), "guided")


def test_order_of_the_list_does_not_matter() -> None:
    one, other = stack(CAD, ADDED, KL), stack(KL, ADDED, CAD)
    assert one.name == other.name == "cad+vdgd+kl_temperature"
    assert one.methods == other.methods


def test_one_program_of_all() -> None:
    spec = stack(KL, ADDED, CAD).spec(1.0, [[1], None, [1]], [7, 8])
    assert spec.program == Program(
        alpha=0.5, third_weight=1.0, top_p=0.5, top_p_temperature=0.5, kl_rate=1.0
    )
    assert (spec.guides, spec.temperature_program, spec.grounding) == ([[1]], None, [7, 8])
    assert spec.texts == [[1], [7, 8]]


def test_a_temperature_with_a_guide_of_its_own_is_a_second_program() -> None:
    spec = stack(CAD, {**KL, **OTHER, "sigma": 2}).spec(1.0, [[1], [2]])
    assert spec.program == Program(alpha=0.5)
    assert spec.temperature_program == Program(form=Form.OBSERVE, kl_rate=0.5)
    assert spec.guides == [[1], [2]]


def test_models_and_a_temperature_with_a_guide() -> None:
    """The first program's second stream is the amateur's logits, the second's is the guide."""
    spec = stack({"method": "contrastive"}, KL).spec(1.0, [None, [4, 5]])
    assert spec.amateurs == ("amateur",)
    assert spec.guides == [[4, 5]]
    assert spec.temperature_program == Program(form=Form.OBSERVE, kl_rate=1.0)
    assert spec.program.alpha == 0.5
    plain = stack({"method": "dexperts"}, EDT).spec(1.0, [None, None])
    assert (plain.amateurs, plain.guides, plain.temperature_program) == (
        ("amateur", "tuned"),
        [],
        None,
    )


@pytest.mark.parametrize(
    ("bodies", "guides", "two"),
    [
        ((EDT,), [None], False),
        ((CAD,), [[1]], False),
        ((CAD, KL), [[1], [1]], False),
        ((CAD, KL), [[1], [2]], True),
        ((CAD, ADDED, KL), [[1], None, [1]], False),
        ((CAD, ADDED, KL), [[1], None, [2]], True),
        (({"method": "contrastive"}, KL), [None, [1]], True),
        (({"method": "contrastive"}, EDT), [None, None], False),
    ],
)
def test_two_second_streams(bodies: Any, guides: list[Any], two: bool) -> None:
    made = stack(*bodies)
    assert made.two_seconds(guides) is two
    assert (made.spec(1.0, guides).temperature_program is not None) is two
    distinct = [guide for guide in guides if guide is not None]
    assert made.spec(1.0, guides).guides == (distinct if two else distinct[:1])


def test_the_first_and_the_last_guide_of_three() -> None:
    spec = stack(CAD, ADDED, {**KL, **OTHER}).spec(1.0, [[1], None, [2]], [7])
    assert (spec.guides, spec.grounding, spec.average) == ([[1], [2]], [7], False)
    assert spec.temperature_program == Program(form=Form.OBSERVE, kl_rate=1.0)


@pytest.mark.parametrize(("reduce", "average"), [("min", False), ("avg", True)])
def test_how_a_grounding_text_is_reduced(reduce: str, average: bool) -> None:
    assert stack({**VDGD, "reduce": reduce}).spec(1.0, [None], [7]).average is average


def test_a_request_between_two_models() -> None:
    switching = stack({"method": "entropy_switch", "threshold": 2})
    assert switching.switches
    assert not stack(EDT).switches
    spec = switching.spec(1.0, [None])
    assert spec.switch == Switch(2.0, 5, 10)
    assert (spec.look, stack(EDT).spec(1.0, [None]).switch) == (None, None)


@pytest.mark.parametrize(("temperature", "greedy"), [(0.7, False), (0.0, True)])
def test_looking_back_at_the_requests_temperature(temperature: float, greedy: bool) -> None:
    spec = stack({"method": "look_back", "otherwise": "sample"}).spec(temperature, [None])
    assert spec.look is not None
    assert spec.look.greedy is greedy


@pytest.mark.parametrize(
    ("bodies", "words"),
    [
        ((CAD, {**CAD, "method": "adacad"}), ("'cad' and 'adacad'", "one contrast")),
        ((CAD, CAD), ("'cad' and 'cad'", "one contrast")),
        ((KL, EDT), ("'kl_temperature' and 'entropy_temperature'", "one temperature")),
        ((VDGD, VDGD), ("'vdgd' and 'vdgd'", "one contrast")),
        ((CAD, VDGD), ("'cad' and 'vdgd'", "'score' to 'subtract'")),
        ((ADDED, USCD), ("'vdgd' and 'uscd'", "contrast of logits")),
        ((ALIGN, ADDED), ("'linear_alignment' and 'vdgd'", "candidate filter")),
        (
            ({"method": "contrastive"}, ADDED),
            ("'contrastive' and 'vdgd'", "text cannot be added to a contrast of models"),
        ),
        (
            (KL, {"method": "look_back"}),
            ("'kl_temperature' and 'look_back'", "look_back takes no other method beside it"),
        ),
    ],
)
def test_clashes_name_both(bodies: tuple[dict[str, Any], ...], words: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        stack(*bodies)
    (error,) = refused.value.errors()
    assert (error["loc"], error["type"]) == (("list",), "methods_clash")
    names, reason = words
    assert error["msg"].startswith(f"{names} clash: ")
    assert reason in error["msg"]


def test_what_may_be_combined() -> None:
    assert stack(ALIGN, KL).name == "linear_alignment+kl_temperature"
    assert stack({**ALIGN, "nucleus": 1}, ADDED).name == "linear_alignment+vdgd"
    assert stack(VDGD, EDT).name == "vdgd+entropy_temperature"
    assert stack(USCD, EDT).spec(1.0, [[1], None]).program.entropy_rate > 0


def test_a_guide_is_shared_with_those_that_need_it() -> None:
    """Whatever the list holds; validation rejects what is not a method."""
    needs = {"cad": True, "cfg": False}
    given = [{"method": "cad"}, {"method": "cfg"}, {"method": "new"}, {"method": 5}, 7, CAD]
    shared = [CAD, {"method": "cfg"}, {"method": "new"}, {"method": 5}, 7, CAD]
    assert share_guide(given, needs) == shared
    assert given[0] == {"method": "cad"}
    for other in ("cad", None, 5, [{"method": "cad"}], [{"method": "cad", "guide": None}]):
        assert share_guide(other, needs) == other


def test_a_missing_guide_is_the_first_one_given() -> None:
    methods = stack({"method": "cad"}, KL).methods
    assert [m.guide for m in methods] == [methods[1].guide] * 2
    with pytest.raises(ValidationError):
        stack({"method": "cad"}, EDT)
    # cfg has a default guide, which is not replaced.
    assert stack({"method": "cfg"}, KL).methods[0].guide is None


@pytest.mark.parametrize("body", [[], [3], ["cad"], [None]])
def test_a_list_of_anything_else_is_refused(body: Any) -> None:
    with pytest.raises(ValidationError):
        adapter.validate_python(body)


def test_figures_of_two_guides_are_told_apart() -> None:
    one = stack(CAD, KL)
    assert one.reports(False) == ("entropy", "kl", "jsd", "alpha", "temperature")
    names = one.reports(True)
    assert names == (
        "entropy", "kl", "jsd", "alpha", "kl_temperature.kl", "kl_temperature.jsd", "temperature",
    )  # fmt: skip
    main = dict(zip(STATISTICS, range(len(STATISTICS)), strict=True))
    figures = one.report([*main.values(), *(10.0 * v for v in main.values())], 2.0)
    assert tuple(figures) == names
    assert figures["alpha"] == main["alpha"]
    three = stack(CAD, ADDED, KL).report([*main.values(), *(10.0 * v for v in main.values())], 2.0)
    assert three["candidates"] == main["kept"]
    assert three["kl_temperature.jsd"] == 10 * main["jsd"]
    with pytest.raises(ValueError, match="zip"):
        one.report([0.0] * (len(STATISTICS) - 1), 1.0)
    with pytest.raises(ValueError, match="zip"):
        one.report([0.0] * (len(STATISTICS) + 1), 1.0)
    assert (figures["kl"], figures["kl_temperature.kl"]) == (main["kl"], 10 * main["kl"])
    assert figures["temperature"] == 20 * main["factor"]
