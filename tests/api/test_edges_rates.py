"""Rates as they are written, counted and reported."""

from __future__ import annotations

import time

import pytest

from divserve.edges import rates as rates_module
from divserve.edges.rates import Allowance, Rates, parse


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0ms"), (0.12, "120ms"), (0.9994, "999ms"), (0.9996, "1s"), (1.0, "1s"),
        (1.5, "1.5s"), (59.5, "59.5s"), (59.9996, "1m0s"), (61.25, "1m1s"), (119.7, "2m0s"),
        (360.0, "6m0s"), (86_400, "1440m0s"),
    ],
)  # fmt: skip
def test_durations_are_told_as_openai_does(seconds: float, told: str) -> None:
    """In headers with lower-case names, which HTTP/2 requires."""
    assert Allowance(True, 5, 3, seconds).headers() == [
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-ratelimit-remaining-requests", b"3"),
        (b"x-ratelimit-reset-requests", told.encode()),
    ]


def test_one_request_is_a_rate() -> None:
    assert [item.amount for item in parse("1/minute; 2/hour")] == [1, 2]
    rates = Rates("1/minute")
    assert [rates.ask("a").granted for _ in range(2)] == [True, False]


@pytest.mark.parametrize("rate", ["2/second;2/hour", "2/hour;2/second"])
def test_of_two_rates_the_longer_one_is_told(rate: str) -> None:
    """If both have the same number of requests left."""
    told = Rates(rate).ask("a")
    assert (told.limit, told.remaining) == (2, 1)
    assert 3000 < told.reset_s <= 3600


def test_clients_that_have_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library empties their windows but keeps their names."""
    monkeypatch.setattr(rates_module, "TIDY_EVERY_S", 0.0)
    rates = Rates("2/second")
    for address in range(50):
        rates.ask(f"address {address}")
    windows = rates._storage.events
    # All of them are there, unless the machine stalled for a second.
    assert len(windows) > 1
    deadline = time.monotonic() + 20
    while len(windows) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        assert rates.ask("one that stays").limit == 2
    assert all("one that stays" in name for name in windows)
