"""Messages between processes arrive unchanged."""

from __future__ import annotations

import json
import pickle
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.decoding import Program, Spec, Switch
from divserve.engine.order import (
    GroupOrder,
    OnSmall,
    Order,
    ProbeOrder,
    TextOrder,
    row_order_of,
    row_order_params,
    spec_of,
    with_spec,
    without_orders,
)
from divserve.engine.reported import Report
from tests.support.specs import LOOKS, NUMBERS, PROGRAMS, SPECS, SWITCHES, TOPS

ORDERS = st.builds(
    Order,
    SPECS,
    st.none() | st.integers(0, 9),
    st.none() | st.integers(1, 50_000),
    st.lists(st.integers(0, 50_000), max_size=4).map(tuple),
)
REPORTS = st.builds(
    Report,
    statistics=st.lists(st.lists(NUMBERS, max_size=4).map(tuple), max_size=3).map(tuple),
    tops=st.lists(TOPS, max_size=2).map(tuple),
    switch=st.none() | SWITCHES,
    model=st.sampled_from([None, "small", "large"]),
    error=st.none() | st.text(),
    refused=st.booleans(),
    wait_s=st.none() | NUMBERS,
    kernel_s=st.none() | NUMBERS,
    broken=st.none() | st.text(),
    unguided=st.integers(0, 9),
)
NAMES = st.text(max_size=4)
ROW_ORDERS = (
    st.builds(
        GroupOrder,
        program=PROGRAMS,
        guides=st.lists(NAMES).map(tuple),
        temperature_program=st.none() | PROGRAMS,
        grounded=st.booleans(),
        amateurs=st.integers(0, 2),
        vocab=st.none() | st.integers(1, 50_000),
        output=st.lists(st.integers(0, 50_000), max_size=4).map(tuple),
        look=st.none() | LOOKS,
    )
    | st.builds(TextOrder, NAMES, st.integers(1, 9), st.booleans())
    | st.builds(ProbeOrder, NAMES, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
)


def params(extra_args: dict[str, Any] | None = None) -> Any:
    """The part of ``SamplingParams`` that carries orders."""
    return SimpleNamespace(extra_args=extra_args)


def plain(value: Any) -> bool:
    """Whether a value is made of types that msgpack knows."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


@given(ORDERS)
def test_an_order_survives_the_way_to_the_scheduler(order: Order) -> None:
    packed = order.pack()
    assert plain(packed)
    for arrived in (
        packed,
        msgspec.msgpack.decode(msgspec.msgpack.encode(packed)),
        json.loads(json.dumps(packed)),
    ):
        assert Order.of(params(arrived)) == order


@given(REPORTS)
def test_a_report_survives_the_way_to_the_front_end(report: Report) -> None:
    output = SimpleNamespace(kv_transfer_params=None)
    report.put_on(output)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(output.kv_transfer_params))
    arrived = SimpleNamespace(kv_transfer_params=sent)
    found = Report.take_from(arrived)
    assert found == report if report != Report() else found is None
    assert arrived.kv_transfer_params is None


def test_a_report_leaves_the_parameters_of_others() -> None:
    output = SimpleNamespace(kv_transfer_params={"theirs": 1})
    Report(unguided=2).put_on(output)
    assert output.kv_transfer_params.keys() == {"theirs", "divserve"}
    assert Report.take_from(output) == Report(unguided=2)
    assert output.kv_transfer_params == {"theirs": 1}
    assert Report.take_from(output) is None


@given(ROW_ORDERS)
def test_what_the_workers_are_told_may_be_pickled(order: Any) -> None:
    sent = pickle.loads(pickle.dumps(params(row_order_params(order))))
    assert row_order_of(sent) == order


def test_rows_without_an_order() -> None:
    for made in (None, params(), params({"theirs": 1})):
        assert row_order_of(made) is None
        assert Order.of(made) is None


@pytest.mark.parametrize("asked", [Spec(Program()), OnSmall(None), OnSmall(Spec(Program()))])
def test_what_the_http_side_asks_for(asked: Spec | OnSmall) -> None:
    made = params({"theirs": 1})
    with_spec(made, asked)
    assert spec_of(made) is asked
    assert without_orders(made.extra_args) == {"theirs": 1}
    assert spec_of(params({"theirs": 1})) is None
    assert spec_of(params()) is None


@pytest.mark.parametrize(
    "extra",
    [
        {"divserve": {"program": []}},
        {"divserve_row": 1},
        {"divserve": Spec(Program()), "divserve_row": 1},
        {"divserve_anything": None},
    ],
)
def test_clients_cannot_write_orders(extra: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="reserved"):
        spec_of(params(extra))


def test_the_next_segment_has_the_same_order_but_for_what_has_happened() -> None:
    order = Order(Spec(Program(alpha=1.0), [[1]]), ticket=3, vocab=7)
    switch = Switch(1.0, 5, 10)
    moved = order.switched(switch, (4, 5))
    assert moved == Order(Spec(Program(alpha=1.0), [[1]], switch=switch), 3, 7, (4, 5))
