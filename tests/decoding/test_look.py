"""Look-back: which earlier steps a step is compared with, and what is sent to the engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.decoding import STATISTICS, Form, Look, LookBack, LookRow, LookState, Program, Stack

TOKENS = st.lists(st.integers(0, 50_000), max_size=20).map(tuple)


@given(st.floats(0, math.inf), st.integers(0, 10**6), st.sampled_from(LookState), TOKENS)
def test_a_report_survives_being_made_numbers(
    kl_min: float, nearest: int, state: LookState, tokens: tuple[int, ...]
) -> None:
    tokens = () if state == LookState.CLEAR else tokens
    kls = tuple(token / 7 for token in tokens) if state == LookState.CHOSEN else ()
    row = LookRow(kl_min, nearest, state, tokens, kls)
    found = LookRow.read([float(number) for number in row.flat()])
    assert found == row
    assert all(type(token) is int for token in (found.nearest, *found.tokens))


def method(**fields: Any) -> LookBack:
    return LookBack.model_validate({"method": "look_back", **fields})


@pytest.mark.parametrize(
    ("otherwise", "temperature", "greedy"),
    [("argmax", 0.7, True), ("argmax", 0.0, True), ("sample", 0.7, False), ("sample", 0.0, True)],
)
def test_what_a_step_without_alarm_does(otherwise: str, temperature: float, greedy: bool) -> None:
    given_fields = {"threshold": 0.5, "k": 3, "window": 7, "reference": "prefix"}
    look = method(otherwise=otherwise, **given_fields).look(temperature)
    assert look == Look(0.5, 3, 7, "prefix", greedy)


def test_the_order_only_observes_and_looks_back() -> None:
    spec = Stack(method()).spec(0.7, [None])
    assert spec.program == Program(form=Form.OBSERVE)
    assert spec.look == Look(1.0, 8, 128, "prefix+generated", True)


def test_the_figures_of_a_step() -> None:
    stack, own = Stack(method()), dict.fromkeys(STATISTICS, 0.0) | {"entropy": 1.5}
    clear = LookRow(math.inf, 0, LookState.CLEAR, (), ())
    alarm = LookRow(0.5, 1, LookState.ALARM, (7, 9), ())
    chosen = LookRow(0.25, 3, LookState.CHOSEN, (7, 9), (1.5, 0.5))
    rows = [(*own.values(), *look.flat()) for look in (clear, alarm, chosen)]
    assert [stack.report(row, 1.0) for row in rows] == [
        {"kl_min": math.inf, "alarm": 0.0, "entropy": 1.5},
        {"kl_min": 0.5, "alarm": 0.0, "entropy": 1.5},
        {"kl_min": 0.25, "alarm": 1.0, "entropy": 1.5},
    ]
    candidates = [{"token_id": 7, "kl": 1.5}, {"token_id": 9, "kl": 0.5}]
    assert [stack.details(row) for row in rows] == [
        {"nearest": None},
        {"nearest": 1},
        {"nearest": 3, "candidates": candidates},
    ]
