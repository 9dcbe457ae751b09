"""The figures of given tokens: golden vectors, and both back ends against float64."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from divserve_contract import EXCLUDED, FIGURES
from divserve_kernels.text_figures import text_figures
from tests.support.scored import expected

BACK_ENDS = {"numba": "numba_text_figures", "torch": "text_figures_torch"}

SCORING = torch.tensor([[2.0, 1, 0, -1], [0, 1, 3, 0], [1, 0, 0, 2]])
REFERENCE = torch.tensor([[1.0, 1, 0, 0], [0, 2, 2, 0], [1, 1, 0, 1]])
TOKENS = torch.tensor([0, 2, 0])
GOLDEN = {
    "logprob": [-0.440190, -0.210998, -1.493812],
    "rank": [1.0, 1.0, 2.0],
    "entropy": [0.947537, 0.672078, 1.048705],
    "varentropy": [0.616586, 0.951464, 0.577365],
}


def found_by(
    name: str,
    tokens: Tensor,
    chosen: Tensor,
    own: Tensor,
    guide: Tensor | None = None,
    reference: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The figures of a back end by name."""
    module = importlib.import_module(f"divserve_kernels.{BACK_ENDS[name]}")
    figures, lse = module.text_figures(tokens, chosen, own, guide, reference)
    assert torch.allclose(lse, chosen.float().logsumexp(-1), atol=1e-5)
    return dict(zip(FIGURES, figures.numpy().T, strict=True))


def made_up(count: int, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocab, generator=generator) * 3


@pytest.mark.parametrize("name", BACK_ENDS)
def test_golden(name: str) -> None:
    found = found_by(name, TOKENS, SCORING, SCORING, None, REFERENCE)
    for figure, values in GOLDEN.items():
        assert found[figure] == pytest.approx(values, abs=1e-5)
    assert found["own_logprob"] == pytest.approx(GOLDEN["logprob"], abs=1e-5)
    assert all(np.isnan(found[figure]).all() for figure in ("guide_logprob", "kl", "jsd"))


@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize(("count", "vocab"), [(1, 2), (3, 333), (70, 1271)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_streams(name: str, count: int, vocab: int, dtype: torch.dtype) -> None:
    chosen, own, guide, reference = (made_up(count, vocab, n).to(dtype) for n in range(4))
    tokens = torch.arange(count) % vocab
    found = found_by(name, tokens, chosen, own, guide, reference)
    wanted = expected(
        tokens.tolist(), own.double(), guide.double(), reference.double(), chosen.double()
    )
    assert wanted.keys() == set(FIGURES)
    for figure, values in wanted.items():
        assert found[figure] == pytest.approx(values, abs=2e-4, rel=1e-5), figure


@pytest.mark.parametrize("name", BACK_ENDS)
def test_tokens_that_are_excluded(name: str) -> None:
    """−inf is probability 0, and so is what a shorter reference lacks."""
    chosen, own, reference = made_up(4, 50, 5), made_up(4, 50, 6), made_up(4, 40, 7)
    chosen[:, 10:] = -math.inf
    tokens = torch.tensor([3, 45, 20, 41])
    found = found_by(name, tokens, chosen, own, None, reference)
    assert found["logprob"][0] > EXCLUDED
    assert found["logprob"][1:].tolist() == [EXCLUDED] * 3
    assert found["rank"][1:].tolist() == [11.0] * 3
    wanted = expected([0, 0, 0, 0], chosen[:, :10].double())
    for figure in ("entropy", "varentropy"):
        assert found[figure] == pytest.approx(wanted[figure], abs=1e-4)
    assert found["reference_logprob"][[1, 3]].tolist() == [EXCLUDED] * 2
    assert found["reference_logprob"][[0, 2]].min() > EXCLUDED
    assert np.isfinite(found["cross_entropy"]).all()


@pytest.mark.parametrize("name", BACK_ENDS)
def test_distributions_far_apart(name: str) -> None:
    """KL is not clipped, unlike the statistic of the same name."""
    own, guide = torch.zeros(1, 20), torch.zeros(1, 20)
    guide[0, 0] = 200.0
    found = found_by(name, torch.tensor([1]), own, own, guide)
    assert found["kl"][0] == pytest.approx(19 / 20 * 200 - math.log(20), rel=1e-5)
    assert found["jsd"][0] < math.log(2)
    same = found_by(name, torch.tensor([1]), own, own, own.clone())
    assert (same["kl"][0], same["jsd"][0]) == (0.0, 0.0)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_a_broken_row_breaks_no_other(name: str) -> None:
    own = made_up(3, 60, 8)
    whole = found_by_rows(name, own)
    own[1, 7] = math.nan
    broken = found_by_rows(name, own)
    assert np.isnan(broken[1]).all()
    assert np.array_equal(broken[[0, 2]], whole[[0, 2]])


def found_by_rows(name: str, own: Tensor) -> np.ndarray:
    """Log-prob and entropy of each row."""
    module = importlib.import_module(f"divserve_kernels.{BACK_ENDS[name]}")
    figures, _lse = module.text_figures(torch.tensor([0, 1, 2]), own, own, None, None)
    numbers: np.ndarray = figures.numpy()[:, [FIGURES.index("logprob"), FIGURES.index("entropy")]]
    return numbers


@pytest.mark.parametrize("name", BACK_ENDS)
def test_rows_with_gaps(name: str) -> None:
    """Columns of a wider tensor, as amateurs give them, and transposed ones."""
    own = made_up(5, 70, 9)
    wide = torch.full((5, 90), 1e9)
    wide[:, 3:73] = own
    tokens = torch.arange(5)
    whole = found_by(name, tokens, own, own)
    for same in (wide[:, 3:73], own.T.contiguous().T):
        found = found_by(name, tokens, same, same)
        assert found["entropy"] == pytest.approx(whole["entropy"], abs=1e-5)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = importlib.import_module(f"divserve_kernels.{BACK_ENDS[name]}")
    monkeypatch.setattr(module, "text_figures", lambda *args: calls.append(args))
    monkeypatch.setenv("DIVSERVE_KERNELS", name)
    text_figures(TOKENS, SCORING, SCORING)
    assert len(calls) == 1
