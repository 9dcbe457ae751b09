"""docs/two_models.md: the acceptance from which a drafting amateur pays, computed again."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.support.models import ROOT

COSTS = (0.05, 0.1, 0.2, 0.36)
PAGE = (ROOT / "docs" / "two_models.md").read_text(encoding="utf-8")


def tokens(alpha: float, drafts: int) -> float:
    """Tokens of a round: the accepted drafts and one more."""
    return sum(alpha**i for i in range(drafts + 1))


def read_again(alpha: float, drafts: int, cost: float, verify: float) -> float:
    """What a round costs where the verification reads the drafts with the amateur as well."""
    return verify * (1 + cost) + drafts * cost


def read_once(alpha: float, drafts: int, cost: float, verify: float) -> float:
    """What a round costs in the paper: the amateur only reads the last draft, if it is accepted."""
    return verify + drafts * cost + cost * alpha**drafts


def break_even(
    round_cost: Callable[[float, int, float, float], float],
    drafts: int,
    cost: float,
    token: float,
    verify: float = 1.0,
) -> float | None:
    """The lowest acceptance with which a token costs at most ``token``; None: there is none."""

    def pays(alpha: float) -> bool:
        return round_cost(alpha, drafts, cost, verify) <= tokens(alpha, drafts) * token + 1e-12

    low, high = 0.0, 1.0
    if not pays(high):
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high


def line(drafts: int, against: str) -> str:
    """A row of the table."""
    cells = []
    for cost in COSTS:
        token = 1 + cost if against == "contrastive" else 1.0
        here, there = (break_even(f, drafts, cost, token) for f in (read_again, read_once))
        assert here is not None
        assert there is not None
        cells.append(f"{here:.2f} ({there:.2f})")
    return f"| {drafts} | {against} | {' | '.join(cells)} |"


@pytest.mark.parametrize("drafts", [1, 2, 4])
@pytest.mark.parametrize("against", ["contrastive", "expert alone"])
def test_the_table(drafts: int, against: str) -> None:
    assert line(drafts, against) in PAGE


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_what_the_text_says(drafts: int) -> None:
    """No acceptance pays where arithmetic takes the time, nor with a layer-dropped amateur."""
    for cost in COSTS:
        assert break_even(read_again, drafts, cost, 1 + cost, verify=drafts + 1) is None
    assert break_even(read_again, drafts, 0.895, 1.0) is None
    found = re.search(r"one\s+draft needs α = (\S+) and with two (\S+)\.", PAGE)
    assert found is not None
    needed = (break_even(read_again, d, 0.895, 1.895) for d in (1, 2))
    assert [f"{alpha:.2f}" for alpha in needed if alpha is not None] == list(found.groups())


def test_the_formulas() -> None:
    """Worked figures of one pair: α = 0.8, four drafts, c = 0.1."""
    assert tokens(0.8, 4) == pytest.approx(3.3616)
    assert tokens(0.8, 4) / read_once(0.8, 4, 0.1, 1.0) == pytest.approx(2.332889, abs=1e-6)
