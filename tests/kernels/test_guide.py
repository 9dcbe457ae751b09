"""The torch back end against the float64 reference and the golden vectors."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from divserve.decoding import METHODS
from divserve_kernels import PARAMETERS, STATISTICS, Rows, guide, reference

CPU = torch.device("cpu")
Z1 = [2.0, 1.5, 0.3, -0.5, -1.0, -2.0]
Z2 = [1.8, 0.2, 1.6, -0.4, -1.2, -0.5]
BACK_ENDS = {"torch": guide, "reference": reference.guide}


def row(method: str, temperature: float = 1.0, **fields: Any) -> tuple[float, ...]:
    """The kernel row of a method."""
    payload = {"method": method, "guide": {"prompt": "x"}, **fields}
    return METHODS[method].model_validate(payload).row(temperature)


def pairs(logits: Tensor, parameters: list[tuple[float, ...]]) -> Rows:
    """Pairs (0, 1), (2, 3) … of ``logits`` ``[2G, V]``."""
    count = logits.shape[0]
    return Rows.pack(range(0, count, 2), range(1, count, 2), parameters, CPU)


MIX = [
    row("cad"),
    row("adacad", floor=0.3),
    row("adacad", jsd_base="bits"),
    row("cfg", scale=0.5),
    row("cfg", scale=3.0),
    row("kl_temperature", sigma=2.0),
    row("kl_temperature", sigma=0.0),
    row("cad", alpha=0.0),
]


@pytest.mark.parametrize("back_end", BACK_ENDS.values(), ids=BACK_ENDS.keys())
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (row("adacad"), [2.016446, 1.606900, 0.193100, -0.508223, -0.983554, -2.123347]),
        (row("adacad", floor=0.3), [2.06, 1.89, -0.09, -0.53, -0.94, -2.45]),
        (row("cad"), [2.10, 2.15, -0.35, -0.55, -0.90, -2.75]),
        (row("cad", alpha=1), [2.2, 2.8, -1.0, -0.6, -0.8, -3.5]),
        (row("cfg"), [2.10, 2.15, -0.35, -0.55, -0.90, -2.75]),
        (row("kl_temperature"), [z / 0.792008 for z in Z1]),
        (row("kl_temperature", sigma=0.1), [z / 0.097118 for z in Z1]),
        (row("kl_temperature", sigma=0.5), [z / 0.627277 for z in Z1]),
    ],
)
def test_golden_logits(back_end: Any, parameters: tuple[float, ...], expected: list[float]) -> None:
    """algorithms.md §15, computed there in float64."""
    logits = torch.tensor([Z1, Z2])
    back_end(logits, pairs(logits, [parameters]))
    assert logits[0].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert logits[1].tolist() == pytest.approx(Z2)


@pytest.mark.parametrize("back_end", BACK_ENDS.values(), ids=BACK_ENDS.keys())
def test_golden_statistics(back_end: Any) -> None:
    """Entropy, KL and JSD in nats; AdaCAD's weight is the JSD, in bits where asked."""
    logits = torch.tensor([Z1, Z2, Z1, Z2])
    bits = row("adacad", jsd_base="bits")
    statistics = back_end(logits, pairs(logits, [row("kl_temperature"), bits]))
    tempered, adaptive = (dict(zip(STATISTICS, s, strict=True)) for s in statistics.tolist())
    assert tempered["entropy"] == pytest.approx(1.199485, abs=1e-5)
    assert tempered["kl"] == pytest.approx(0.336412, abs=1e-5)
    assert tempered["factor"] == pytest.approx(0.792008, abs=1e-5)
    assert adaptive["jsd"] == pytest.approx(0.0822311, abs=1e-5)
    assert adaptive["alpha"] == pytest.approx(0.1186344, abs=1e-5)


def assert_parity(logits: Tensor, rows: Rows) -> None:
    """Both back ends agree on logits and statistics, and leave all other rows alone."""
    mine, oracle = logits.clone(), logits.clone()
    statistics, expected = guide(mine, rows), reference.guide(oracle, rows)
    torch.testing.assert_close(statistics, expected, rtol=2e-4, atol=2e-5, equal_nan=True)
    # The contrast of two large logits may cancel: compare on the scale of its terms.
    scale = logits.nan_to_num(neginf=0).abs().max() * (1 + expected[:, 3].nan_to_num().abs().max())
    tolerance = float(scale / expected[:, 4].nan_to_num(nan=1).min()) * 2e-4
    torch.testing.assert_close(mine, oracle, rtol=2e-4, atol=tolerance, equal_nan=True)
    untouched = torch.ones(logits.shape[0], dtype=torch.bool)
    untouched[rows.primary] = False
    assert torch.equal(mine[untouched].isnan(), logits[untouched].isnan())
    assert torch.equal(mine[untouched].nan_to_num(), logits[untouched].nan_to_num())


@pytest.mark.parametrize("vocab", [1, 2, 111, 1271, 49152])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_parity_mixed_methods(vocab: int, spread: float) -> None:
    """All methods in one call, odd sizes, bfloat16-rounded logits."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(2 * len(MIX), vocab, generator=generator) * spread
    assert_parity(logits, pairs(logits, MIX))
    rounded = logits.bfloat16().float()
    assert_parity(rounded, pairs(rounded, MIX))


@pytest.mark.parametrize("vocab", [7, 1271])
def test_parity_with_masked_entries(vocab: int) -> None:
    """−inf in the primary, the guide, both, and a whole guide row of −inf."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2 * len(MIX), vocab, generator=generator)
    logits[0, 0] = logits[3, 1] = logits[4:6, 2] = -math.inf
    logits[7] = -math.inf
    assert_parity(logits, pairs(logits, MIX))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.integers(1, 300),
    groups=st.integers(1, 9),
    spread=st.floats(0.01, 20),
    masked=st.floats(0, 0.9),
)
def test_parity_anywhere(seed: int, vocab: int, groups: int, spread: float, masked: float) -> None:
    """Random pairs at random rows of a batch, with random masks."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2 * groups + 3, vocab, generator=generator) * spread
    mask = torch.rand(logits.shape, generator=generator) < masked
    mask[:, 0] = False
    logits[mask] = -math.inf
    order = torch.randperm(logits.shape[0], generator=generator).tolist()
    chosen = [MIX[i % len(MIX)] for i in range(groups)]
    rows = Rows.pack(order[:groups], order[groups : 2 * groups], chosen, CPU)
    assert_parity(logits, rows)


def test_a_guide_may_serve_itself_and_rows_may_be_anywhere() -> None:
    """Identical rows: no divergence, and the primary's logits come back bit for bit."""
    logits = torch.randn(5, 97, generator=torch.Generator().manual_seed(0))
    logits[4] = logits[1]
    before = logits.clone()
    statistics = guide(logits, Rows.pack([4], [1], [row("adacad")], CPU))
    assert torch.equal(logits, before)
    assert statistics[0, 1:4].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "neutral", [row("cad", alpha=0), row("cfg", scale=1), row("kl_temperature", sigma=0)]
)
def test_neutral_rows_are_bit_identical(neutral: tuple[float, ...]) -> None:
    """Invariant 2: no strength, no change, not even a rounding."""
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 5
    before = logits.clone()
    guide(logits, pairs(logits, [neutral]))
    assert torch.equal(logits, before)


def test_nan_stays_in_its_own_pair() -> None:
    """A broken row must not reach its neighbours."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    healthy = logits.clone()
    logits[0, 3] = math.nan
    guide(logits, pairs(logits, [row("adacad")] * 2))
    guide(healthy, pairs(healthy, [row("adacad")] * 2))
    assert torch.equal(logits[2], healthy[2])
    assert logits[0].isnan().any()


def test_more_pairs_than_one_chunk() -> None:
    """Fifty pairs are worked on in parts; nobody can tell."""
    logits = torch.randn(100, 301, generator=torch.Generator().manual_seed(0)) * 3
    assert_parity(logits, pairs(logits, [MIX[i % len(MIX)] for i in range(50)]))


def test_repeat_runs_are_bitwise_equal() -> None:
    logits = torch.randn(16, 4099, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(2):
        copy = logits.clone()
        runs.append((guide(copy, pairs(copy, MIX)), copy))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_non_contiguous_logits() -> None:
    """vLLM crops padded vocabularies with a view."""
    wide = torch.randn(2 * len(MIX), 160, generator=torch.Generator().manual_seed(0))
    view, dense = wide[:, :131], wide[:, :131].clone()
    guide(view, pairs(view, MIX))
    guide(dense, pairs(dense, MIX))
    torch.testing.assert_close(view, dense)


def test_inference_mode_leaves_no_trace() -> None:
    """The engine calls in inference mode; the workspace it leaves must serve everybody."""
    wide = torch.randn(2, 100_003)
    with torch.inference_mode():
        guide(wide.clone(), pairs(wide, [row("cad")]))
    guide(wide, pairs(wide, [row("cad")]))


def test_half_precision_is_refused() -> None:
    logits = torch.zeros(2, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="float32"):
        guide(logits, pairs(logits, [row("cad")]))


def test_tables_agree_with_the_methods() -> None:
    """The kernel and the methods name the same columns without importing each other."""
    from divserve.decoding import STATISTICS as REPORTED
    from divserve.decoding import Row

    assert (Row._fields, REPORTED) == (PARAMETERS, STATISTICS)
