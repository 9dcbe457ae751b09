"""The likeliest tokens of rows and their log-probs, against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch

from divserve_kernels import top_logprobs, top_reference
from divserve_kernels.top import AT_ONCE, LARGEST_VOCABULARY
from tests.kernels.histories import GPU

INF, NAN = math.inf, math.nan
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "vocab", "count", "k"),
    [(1, 1, 1, 1), (4, 20, 3, 20), (3, 333, 9, 5), (7, 4099, 2 * AT_ONCE + 1, 20), (2, 50, 0, 3)],
)
@pytest.mark.parametrize("device", DEVICES)
def test_equals_the_reference(
    rows: int, vocab: int, count: int, k: int, dtype: torch.dtype, device: str
) -> None:
    """bfloat16 has many ties; every third token but one has no probability."""
    generator = torch.Generator().manual_seed(vocab + count)
    logits = (4 * torch.randn(rows, vocab, generator=generator)).to(dtype)
    logits[:, 1::3] = -INF
    which = torch.randint(rows, (count,), generator=generator)
    found = top_logprobs(logits.to(device), which.to(device), k).cpu()
    assert found.dtype is torch.float32
    torch.testing.assert_close(
        found.double(), top_reference.top_logprobs(logits, which, k), rtol=1e-5, atol=1e-5
    )


def test_golden() -> None:
    """Order, a tie, tokens without probability, a row without any, NaN in another row."""
    logits = torch.tensor(
        [[0.0, math.log(2), 0.0, -INF], [-INF] * 4, [NAN, 0.0, 1.0, 2.0], [-INF, 5.0, -INF, -INF]]
    )
    found = top_logprobs(logits, torch.tensor([0, 3, 1]), 4)
    assert found[:, 0].tolist() == [[1, 0, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3]]
    expected = [-math.log(2), -math.log(4), -math.log(4), -INF]
    assert found[0, 1].tolist() == pytest.approx(expected)
    assert found[1, 1].tolist() == [0.0, -INF, -INF, -INF]
    assert found[2, 1].isnan().all()


@pytest.mark.parametrize(("vocab", "k"), [(3, 4), (LARGEST_VOCABULARY + 1, 1)])
def test_what_cannot_be_told(vocab: int, k: int) -> None:
    with pytest.raises(ValueError, match="tokens of"):
        top_logprobs(torch.empty(1, vocab, device="meta"), torch.zeros(1, dtype=torch.int64), k)
