"""The order that travels with a request: packed by the front end, unpacked by the engine."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.decoding import Form, Look, Program, Spec, Switch

NUMBERS = st.floats(allow_nan=False)
IDS = st.lists(st.integers(0, 50_000), max_size=4)
ROWS = st.builds(Program, *[NUMBERS] * len(Program._fields))
SWITCHES = st.builds(
    Switch,
    NUMBERS,
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["small", "large"]),
    st.lists(NUMBERS).map(tuple),
    st.integers(0, 9),
)
LOOKS = st.builds(
    Look,
    NUMBERS,
    st.integers(1, 20),
    st.integers(0, 9),
    st.sampled_from(["prefix", "generated", "prefix+generated"]),
    st.booleans(),
)
SPECS = st.builds(
    Spec,
    ROWS,
    st.lists(IDS, max_size=2),
    st.none() | ROWS,
    IDS,
    st.booleans(),
    st.lists(st.sampled_from(["amateur", "tuned"])).map(tuple),
    st.none() | SWITCHES,
    st.none() | LOOKS,
)


def plain(value: Any) -> bool:
    """Whether a value is made of JSON's types alone."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (bool, int, float, str)


@given(SPECS)
def test_orders_survive_the_wire(spec: Spec) -> None:
    wire = spec.to_wire()
    assert plain(wire)
    assert Spec.from_wire(wire) == spec
    assert Spec.from_wire(json.loads(json.dumps(wire))) == spec


def test_what_an_order_is_by_default() -> None:
    """A key that the front end forgets would be missed by the engine."""
    assert Spec(Program()).to_wire() == {
        "row": list(Program()), "guides": [], "cooling": None, "grounding": [], "average": False,
        "amateurs": [], "switch": None, "look": None,
    }  # fmt: skip


@given(SPECS)
def test_streams_are_all_that_is_read_beside_the_prompt(spec: Spec) -> None:
    streams = [*spec.guides, spec.grounding] if spec.grounding else spec.guides
    assert spec.streams == streams


@pytest.mark.parametrize(
    ("row", "drops"),
    [
        (Program(), False),
        (Program(alpha=2.0, kl_rate=1.0), False),
        (Program(top_p=1.0, log_plausibility=-math.inf), False),
        (Program(top_p=0.999), True),
        (Program(log_plausibility=-1e300), True),
        (Program(form=float(Form.PROBABILITY)), True),
        (Program(form=float(Form.SWITCH)), False),
        (Program(form=float(Form.OBSERVE)), False),
    ],
)
def test_what_may_drop_tokens(row: Program, drops: bool) -> None:
    assert row.drops_tokens() is drops
