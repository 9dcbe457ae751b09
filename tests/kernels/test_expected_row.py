"""The mean row of the output matrix, by which look-back compares distributions."""

from __future__ import annotations

import math

import pytest
import torch

from divserve_kernels import expected_row, history_reference
from divserve_kernels.history_mean import halves
from tests.kernels.histories import GPU, TYPES


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [1, 97, 576])
def test_expected_row(hidden: int, dtype: torch.dtype) -> None:
    """A padded matrix of several slices; rows of equal and of very unequal probabilities."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5003, hidden, generator=generator).to(dtype)
    weight[4999:] = math.nan
    logits = torch.randn(3, 4999, generator=generator) * torch.tensor([[0.1], [3], [30]])
    probs = logits.softmax(-1)
    expected = history_reference.expected_row(probs, weight)
    torch.testing.assert_close(expected_row(probs, weight), expected.float(), rtol=1e-6, atol=1e-6)
    if dtype is not torch.float32:
        high, low, scale = halves(probs, dtype)
        joined = (high.double() + low.double()) / scale @ weight[:4999].double()
        torch.testing.assert_close(joined, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", TYPES)
def test_expected_row_on_a_gpu(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    weight = torch.randn(50000, 576, device=device).to(dtype)
    spread = torch.tensor([[0.1], [3], [30]], device=device)
    probs = (torch.randn(3, 49152, device=device) * spread).softmax(-1)
    expected = history_reference.expected_row(probs, weight).float()
    torch.testing.assert_close(expected_row(probs, weight), expected, rtol=2e-5, atol=2e-5)
