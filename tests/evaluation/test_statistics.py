"""Against scipy, and the vectors of the metrics that have published ones."""

from __future__ import annotations

import math
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from divserve.evaluation.statistics import (
    change_of_mean,
    change_of_share,
    entropy,
    first_divergence,
    flips,
    mcnemar,
    moved_tokens,
    quantiles,
    tempered,
    wilson,
)
from divserve.evaluation.texts import distinct, diversity, rep

COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS)
def test_intervals_are_those_of_scipy(right: int, wrong: int) -> None:
    total = right + wrong
    if total == 0:
        assert wilson(0, 0) == (0, 1)
        return
    found = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right, total) == pytest.approx((found.low, found.high), abs=1e-9)


@given(COUNTS, COUNTS)
def test_the_exact_test_is_that_of_scipy(lost: int, won: int) -> None:
    expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected)


def test_flips() -> None:
    before = list(zip(map(bool, (1, 1, 0, 0, 1, 0)), "ABCDAB", strict=True))
    after = list(zip(map(bool, (1, 0, 1, 0, 1, 0)), "ACBDAC", strict=True))
    found = flips(before, after)
    assert (found.lost, found.won, found.changed, found.total) == (1, 1, 3, 6)
    assert found.share == pytest.approx(1 / 3)
    assert (found.all, found.p) == (0.5, 1)
    assert flips([], []).share == flips([], []).all == 0


@pytest.mark.parametrize(
    ("base", "other", "first", "moved"),
    [
        ((1, 2, 3, 4, 5, 6), (1, 2, 9, 4, 9, 6), 2, 2),
        ((1, 2), (1, 2, 3), 2, 0),
        ((1, 2, 3), (1, 2), 2, 1),
        ((), (1,), 0, 0),
    ],
)
def test_where_two_answers_part(
    base: tuple[int, ...], other: tuple[int, ...], first: int, moved: int
) -> None:
    assert (first_divergence(base, other), moved_tokens(base, other)) == (first, moved)


def test_the_temperature_of_an_entropy() -> None:
    rows = [[0.0, -1.0, -2.0], [0.0, -0.5, -3.0]]
    target = sum(entropy(row, 0.6) for row in rows) / 2
    assert tempered(rows, target) == pytest.approx(0.6, abs=1e-4)
    assert entropy([0.0, 0.0]) == pytest.approx(math.log(2))
    assert tempered(rows, math.log(3) + 0.1) is None
    assert tempered([], 0.5) is None


def test_repetition() -> None:
    assert rep("abab", 2) == pytest.approx(1 / 3)
    assert rep("a", 2) == 0
    assert diversity("abcdef") == 1
    assert diversity("aaaaaa") == pytest.approx(1 / 5 * 1 / 4 * 1 / 3)
    assert distinct(["a", "b", "a"]) == pytest.approx(2 / 3)
    assert distinct([]) == 0


def test_the_interval_of_a_change() -> None:
    before = [0.1 * number for number in range(40)]
    after = [value + 1 + 0.1 * (-1) ** number for number, value in enumerate(before)]
    mean, low, high = change_of_mean(before, after)
    assert mean == pytest.approx(1)
    # The normal interval of forty changes with a deviation of 0.1.
    assert (low, high) == pytest.approx((1 - 0.031, 1 + 0.031), abs=0.005)
    assert change_of_mean([1, 2], [1, 2]) == (0, 0, 0)


@given(COUNTS, COUNTS, COUNTS)
def test_the_interval_of_a_share_is_that_of_the_differences(won: int, lost: int, same: int) -> None:
    """Bonett and Price: that of the mean of +1, −1 and 0, with one more item of each change."""
    total = won + lost + same
    found = change_of_share(won, lost, total)
    marks = [1] * (won + 1) + [-1] * (lost + 1) + [0] * same
    half = 1.959964 * stdev(marks) * math.sqrt((len(marks) - 1) / len(marks)) / len(marks) ** 0.5
    middle = sum(marks) / len(marks)
    assert found[1:] == pytest.approx((middle - half, middle + half), abs=1e-5)
    assert found.mean == (pytest.approx((won - lost) / total) if total else 0)


def test_quantiles() -> None:
    values = [float(number) for number in range(1, 101)]
    assert quantiles(values) == {"mean": 50.5, "50 %": 50, "90 %": 90, "99 %": 99, "max": 100}
    assert set(quantiles([3.0]).values()) == {3}
