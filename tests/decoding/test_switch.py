"""The rule of entropy-adaptive switching, against the golden trace and a plain reimplementation."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from divserve.decoding import Decoding, EntropySwitch, Form, ModelSize, Switch, SwitchRule

GOLDEN_BITS = [
    0.2, 0.3, 0.1, 2.5, 2.9, 3.0, 2.8, 2.7, 0.4, 0.2, 0.1,
    0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.3, 0.1, 0.2, 0.1, 0.1,
]  # fmt: skip
"""The rule of the paper, step by step."""


def producers(switch: Switch, bits: list[float]) -> str:
    """The model of each token, one letter per token."""
    rule, letters = SwitchRule(switch), ""
    for entropy in bits:
        before = rule.state.active
        letters += before[0]
        moves = rule.observe(entropy * math.log(2))
        assert moves is (rule.state.active != before)
    return letters


def replayed(switch: Switch, bits: list[float]) -> str:
    """The same as the paper words it, computed from all bits that the account shows."""
    bits = [entropy * math.log(2) / math.log(2) for entropy in bits]
    active, since, letters = switch.active[0], 0, ""
    for t in range(len(bits)):
        letters += active
        since += 1
        if t + 1 >= switch.window and since >= switch.min_run:
            mean = math.fsum(bits[t + 1 - switch.window : t + 1]) / switch.window
            wanted = "l" if mean >= switch.threshold else "s"
            if wanted != active:
                active, since = wanted, 0
    return letters


def test_the_golden_trace() -> None:
    assert producers(Switch(1.0, 5, 10), GOLDEN_BITS) == "s" * 10 + "l" * 10 + "s" * 2


def test_at_the_threshold_the_large_model_is_wanted() -> None:
    assert producers(Switch(1.0, 1, 1), [1.0, 1.0, 0.99, 0.99]) == "slls"


def test_no_switch_before_the_window_is_full() -> None:
    assert producers(Switch(0.0, 4, 1), [9.0] * 6) == "ssssll"


# Sixteenths: many means are at a threshold.
ENTROPIES = st.lists(st.integers(0, 64).map(lambda n: n / 16), max_size=60)


@example(bits=[1.625, 1.75, 1.75, 1.75, 0.0], threshold=1.71875, window=4, min_run=1, start="small")
@given(
    bits=ENTROPIES,
    threshold=st.integers(1, 64).map(lambda n: (n - 0.5) / 16),
    window=st.integers(1, 8),
    min_run=st.integers(1, 12),
    start=st.sampled_from(["small", "large"]),
)
def test_the_rule_is_the_papers(
    bits: list[float], threshold: float, window: int, min_run: int, start: ModelSize
) -> None:
    switch = Switch(threshold, window, min_run, start)
    assert producers(switch, bits) == replayed(switch, bits)


def test_a_mean_at_the_threshold() -> None:
    """In nats and back, as the engine reports them, these bits are the same again."""
    switch = Switch(1.71875, 4, 1)
    assert producers(switch, [1.625, 1.75, 1.75, 1.75, 0.0]) == "ssssl"


@given(bits=ENTROPIES, cuts=st.lists(st.integers(0, 60), max_size=4))
def test_a_rule_goes_on_where_it_was_cut(bits: list[float], cuts: list[int]) -> None:
    """The state sent with a hand-off is all that the rule needs."""
    switch = Switch(1.97, 5, 3)
    nats = [entropy * math.log(2) for entropy in bits]
    whole, cut = SwitchRule(switch), SwitchRule(switch)
    for t, entropy in enumerate(nats):
        if t in cuts:
            cut = SwitchRule(cut.state)
        assert cut.observe(entropy) == whole.observe(entropy)
    assert cut.state == whole.state


@given(
    st.lists(st.floats(0, 16), max_size=5), st.integers(0, 9), st.sampled_from(["small", "large"])
)
def test_a_rule_begins_where_it_is_told(recent: list[float], run: int, active: ModelSize) -> None:
    switch = Switch(1.0, 5, 3, active, tuple(recent), run)
    assert SwitchRule(switch).state == switch


def test_the_method_observes_and_reports_bits() -> None:
    method = EntropySwitch.model_validate({"method": "entropy_switch", "threshold": 2})
    assert method.program(1.0).form == Form.OBSERVE
    assert method.switch() == Switch(2.0, 5, 10, "small")
    other = {"method": "entropy_switch", "window": 3, "min_run": 4, "start": "large"}
    assert EntropySwitch.model_validate(other).switch() == Switch(1.0, 3, 4, "large")
    assert method.report({"entropy": math.log(8)}, 1.0)["entropy_bits"] == pytest.approx(3)


@pytest.mark.parametrize("other", ["entropy_temperature", "contrastive", "entropy_switch"])
def test_it_is_used_alone(other: str) -> None:
    stack = [{"method": "entropy_switch"}, {"method": other}]
    with pytest.raises(ValidationError, match="clash"):
        TypeAdapter(Decoding).validate_python(stack)
