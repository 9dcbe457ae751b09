"""How near two rows are: overlap, and agreement on a likeliest token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from divserve_contract import STATISTICS, Program
from divserve_kernels import ABSENT, side_row
from tests.kernels.cases import back_end, streams_of
from tests.kernels.test_guide import NAMES, Z1, Z2

INF = math.inf


def nearness(
    name: str, z1: Tensor, z2: Tensor | None, side: Tensor | None = None
) -> tuple[float, float]:
    """Overlap and agreement of two rows, with a separate output; None: there is no guide."""
    logits = torch.stack([z1] if z2 is None else [z1, z2])
    second = [ABSENT] if z2 is None else [1] if side is None else [side_row(0)]
    streams = streams_of([Program(alpha=0.5)], [0], second)
    found = back_end(name)(logits, streams, side, torch.empty(logits.shape))[0]
    overlap, agree = (float(found[STATISTICS.index(n)]) for n in ("overlap", "agree"))
    return overlap, agree


def one_minus_tv(z1: Sequence[float], z2: Sequence[float]) -> float:
    """1 − ½·Σ|p1 − p2| in float64."""
    p1, p2 = (np.exp(z) / np.exp(z).sum() for z in (np.array(z1), np.array(z2)))
    return float(1 - np.abs(p1 - p2).sum() / 2)


@pytest.mark.parametrize("name", NAMES)
def test_overlap_is_what_the_total_variation_leaves(name: str) -> None:
    z1, z2 = torch.tensor(Z1), torch.tensor(Z2)
    assert nearness(name, z1, z2)[0] == pytest.approx(one_minus_tv(Z1, Z2), abs=1e-6)
    # Each row masks everything that the other keeps.
    assert nearness(name, torch.tensor([0.0, -INF]), torch.tensor([-INF, 0.0]))[0] == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("z1", "z2", "agree"),
    [
        (Z1, Z2, 1),
        (Z1, Z2[::-1], 0),
        ([2, 1, 2, 0], [0, 1, 3, 2], 1),
        ([2, 1, 2, 0], [3, 1, 0, 2], 1),
        ([2, 1, 2, 0], [0, 3, 0, 3], 0),
        ([2, 2, 1, 0], [0, 3, 3, 0], 1),
        # The next smaller number is not a tie, though the distributions are almost equal.
        ([1, 1 - 2**-24, 0], [1 - 2**-24, 1, 0], 0),
        ([0.0, -1, -2], [-0.0, -1, -2], 1),
        # The guide's likeliest token cannot be sampled.
        ([1, 2, -INF], [-INF, 0, 3], 0),
        ([1, -INF, 2], [-INF, -INF, -5], 1),
    ],
)
def test_agreement_is_on_a_likeliest_token(
    name: str, z1: list[float], z2: list[float], agree: int
) -> None:
    """Any one of several equally likely tokens."""
    assert nearness(name, torch.tensor(z1), torch.tensor(z2))[1] == agree


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("last", "agree"), [(3.0, 1), (2.5, 0)])
def test_agreement_anywhere_in_a_long_row(name: str, last: float, agree: int) -> None:
    """One part of the row has both maxima on different tokens; only the end has them on one."""
    vocab = 700 if name == "triton" else 20011
    z1, z2 = torch.zeros(2, vocab)
    z1[[3, vocab - 1]] = 4.0
    z2[[5, vocab - 1]] = torch.tensor([3.0, last])
    assert nearness(name, z1, z2)[1] == agree


@pytest.mark.parametrize("name", NAMES)
def test_nearness_without_a_guide_and_of_dead_streams(name: str) -> None:
    """Without a guide, the primary is its own. A dead guide is uniform; a dead primary has no
    overlap."""
    z1, dead = torch.tensor(Z1), torch.full((6,), -INF)
    assert nearness(name, z1, None) == (1, 1)
    overlap, agree = nearness(name, z1, dead)
    assert overlap == pytest.approx(one_minus_tv(Z1, [0.0] * 6), abs=1e-6)
    assert agree == 1
    for guide_row in (z1, dead, None):
        assert nearness(name, dead, guide_row) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("z1", "side"),
    [
        ([0.5, 2.0, 1.0, 0.0, 4.0, 5.0], [1.0, 3.0, 0.0, 0.5]),
        ([0.5, 2.0, 1.0, 0.0], [1.0, 3.0, 0.0, 0.5, 4.0, 5.0]),
    ],
)
def test_nearness_is_of_the_shared_vocabulary(
    name: str, z1: list[float], side: list[float]
) -> None:
    """The longer row has its maximum beyond the shared vocabulary."""
    streams = torch.tensor(z1), torch.zeros(len(z1)), torch.tensor([side])
    overlap, agree = nearness(name, *streams)
    assert overlap == pytest.approx(one_minus_tv(z1[:4], side[:4]), abs=1e-6)
    assert agree == 1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "numba"])
def test_agreement_of_half_precision_rows(name: str) -> None:
    """Values that were rounded to a tie are a tie."""
    z1, z2 = torch.tensor([[1.0, 1.001, 0.0], [2.0, 1.0, 0.0]])
    assert nearness(name, z1, z2)[1] == 0
    assert nearness(name, z1.bfloat16(), z2.bfloat16())[1] == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nearness_of_broken_rows(name: str, sign: float) -> None:
    """NaN of either sign, in either stream: no number can be trusted."""
    z = torch.tensor(Z1)
    broken = z.clone()
    broken[2] = math.copysign(math.nan, sign)
    for z1, z2 in ((broken, z), (z, broken), (broken, broken), (broken, None)):
        assert all(map(math.isnan, nearness(name, z1, z2)))
