"""What a client is told of its rates."""

from __future__ import annotations

import pytest

from divserve.edges.rates import Allowance


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, "0ms"), (0.12, "120ms"), (0.9994, "999ms"), (1.0, "1s"), (1.5, "1.5s"),
        (59.5, "59.5s"), (59.9996, "1m0s"), (61.25, "1m1s"), (360.0, "6m0s"), (86_400, "1440m0s"),
    ],
)  # fmt: skip
def test_durations_are_told_as_openai_does(seconds: float, told: str) -> None:
    """In headers whose names are small, which HTTP/2 asks for."""
    assert Allowance(True, 5, 3, seconds).headers() == [
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-ratelimit-remaining-requests", b"3"),
        (b"x-ratelimit-reset-requests", told.encode()),
    ]
