"""The candidates of look-back's alarms: every back end gives exactly what the reference does."""

from __future__ import annotations

import importlib
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from divserve_kernels import candidates, likeliest
from tests.kernels.cases import ALL, CPU, INTERPRETED
from tests.kernels.histories import GPU

INF, NAN = math.inf, math.nan
NAMES = ["reference", *ALL]
SIZES = [(1, 1, 1), (3, 5, 5), (2, 128, 8), (4, 129, 1), (5, 333, 20), (3, 1271, 32)]
"""Rows, vocabulary, candidates."""


def found(name: str, logits: Tensor, wanted: Tensor, k: int) -> Tensor:
    """The result of a back end; Triton's with short tiles, so that small rows have several."""
    module = importlib.import_module(f"divserve_kernels.candidates_{name}")
    tile = {"tile": 128} if name == "triton" and INTERPRETED else {}
    with np.errstate(all="ignore"):
        tokens: Tensor = module.likeliest(logits, wanted, k, **tile)
    return tokens


def made_up(
    count: int, vocab: int, device: torch.device = CPU, round_to: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Logits with many ties and masked tokens; every second row is wanted, by chance."""
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(count, vocab, generator=generator) / round_to).round() * round_to
    logits[:, 1::3] = -INF
    wanted = torch.rand(count, generator=generator) < 0.5
    wanted[0] = True
    return logits.to(device), wanted.to(device)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    """Order, ties, infinities, both zeros, NaN; a row that needs none is not read."""
    logits = torch.tensor(
        [
            [1.0, 3.0, 2.0, 3.0, -1.0],
            [-INF, -INF, 5.0, -INF, INF],
            [-0.0, 0.0, -1.0, -0.0, 0.0],
            [2.0, NAN, INF, -NAN, 1.0],
            [NAN, NAN, 9.0, 9.0, 9.0],
        ]
    )
    wanted = torch.tensor([True, True, True, True, False])
    expected = [[1, 3, 2, 0], [4, 2, 0, 1], [0, 1, 3, 4], [1, 3, 2, 0], [0, 0, 0, 0]]
    tokens = found(name, logits, wanted, 4)
    assert tokens.dtype is torch.int64
    assert tokens.tolist() == expected


@pytest.mark.parametrize(("count", "vocab", "k"), SIZES)
@pytest.mark.parametrize("name", ALL)
def test_sizes(name: str, count: int, vocab: int, k: int) -> None:
    logits, wanted = made_up(count, vocab)
    assert torch.equal(found(name, logits, wanted, k), found("reference", logits, wanted, k))
    assert not found(name, logits, torch.zeros_like(wanted), k).any()


@pytest.mark.parametrize("name", ALL)
def test_strided_rows(name: str) -> None:
    """Every second row of a wider tensor; numba leaves gaps in rows to torch."""
    logits, wanted = made_up(4, 300)
    wide = torch.full((8, 310), INF)
    wide[::2, 5:305] = logits
    expected = found("reference", logits, wanted, 6)
    assert torch.equal(found(name, wide[::2, 5:305], wanted, 6), expected)
    if name != "triton":
        gaps = torch.stack((logits, -logits), -1)[..., 0]
        assert torch.equal(found(name, gaps, wanted, 6), expected)


def test_without_ties_it_is_torch_topk() -> None:
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    tokens = likeliest(logits, torch.ones(3, dtype=torch.bool), 20)
    assert torch.equal(tokens, logits.topk(20).indices)


@pytest.mark.parametrize("name", ["numba", "torch", "reference"])
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Mock(return_value=torch.zeros(2, 3))
    monkeypatch.setattr(f"divserve_kernels.candidates_{name}.likeliest", called)
    monkeypatch.setenv("DIVSERVE_KERNELS", name)
    likeliest(*made_up(2, 30), 3)
    called.assert_called_once()


def test_limits() -> None:
    """Nothing to rank, and more than there is."""
    wanted = torch.ones(2, dtype=torch.bool)
    assert likeliest(torch.zeros(0, 9), wanted[:0], 3).shape == (0, 3)
    assert likeliest(torch.zeros(2, 9), wanted, 0).shape == (2, 0)
    for k, vocab in ((10, 9), (candidates.MOST + 1, 99)):
        with pytest.raises(ValueError, match=f"{k} of {vocab} tokens"):
            likeliest(torch.zeros(2, vocab), wanted, k)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("vocab", [33, 8192, 49152, 151936])
def test_parity_on_a_gpu(vocab: int) -> None:
    """Without waiting for the device."""
    logits, wanted = made_up(12, vocab, torch.device("cuda"), 1e-3)
    expected = found("reference", logits, wanted, 20)
    for name in ("triton", "torch"):
        found(name, logits, wanted, 20)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            tokens = found(name, logits, wanted, 20)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(tokens, expected)
