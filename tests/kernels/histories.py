"""Histories of hidden states for the tests of look-back's kernels."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import Tensor

from divserve_kernels import Nearest, history_reference
from tests.kernels.cases import CPU

TYPES = [torch.float32, torch.bfloat16, torch.float16]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")


@dataclass(frozen=True)
class Case:
    """The arguments of `nearest`."""

    states: Tensor
    lse: Tensor
    tables: Tensor
    rows: Tensor
    starts: Tensor
    stops: Tensor
    mu: Tensor
    neg_entropy: Tensor
    most: int

    def slot(self, n: int, j: int) -> int:
        """The slot of position j of row n."""
        block = self.states.shape[1]
        return int(self.tables[self.rows[n], j // block]) * block + j % block

    def tensors(self) -> list[Tensor]:
        """All arguments but the last."""
        return [getattr(self, field.name) for field in fields(self)[:-1]]

    def found(self, name: str) -> Nearest:
        """The result of a back end."""
        module = importlib.import_module(f"divserve_kernels.history_{name}")
        # Triton's interpreter computes with numpy, which warns where a GPU makes NaN.
        with np.errstate(all="ignore"):
            return Nearest(*module.nearest(*self.tensors(), self.most))


def made_up(
    ranges: Sequence[tuple[int, int]],
    hidden: int = 64,
    block: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    seed: int = 0,
) -> Case:
    """Pages in random order; what no range covers is NaN, or a page that does not exist."""
    generator = torch.Generator().manual_seed(seed)
    count, width = len(ranges), max(max(stop for _, stop in ranges) - 1, 0) // block + 1
    blocks = count * width + 3
    pages = torch.randperm(blocks, generator=generator)[: count * width].view(count, width)
    tables = torch.full((2 * count, width), -(2**30), dtype=torch.int32)
    rows = torch.randperm(2 * count, generator=generator)[:count]
    states = torch.full((blocks, 1, block, hidden), math.nan)
    lse = torch.full((blocks * block + 1,), math.nan)
    for n, (start, stop) in enumerate(ranges):
        for j in range(start, stop):
            page = tables[rows[n], j // block] = pages[n, j // block]
            states[page, 0, j % block] = torch.randn(hidden, generator=generator)
            lse[page * block + j % block] = 6 + torch.randn((), generator=generator)
    starts, stops = torch.tensor(ranges, dtype=torch.int32).T.contiguous()
    return Case(
        states.to(dtype).to(device)[:, 0],
        lse.to(device),
        tables.to(device),
        rows.to(device),
        starts.to(device),
        stops.to(device),
        torch.randn(count, hidden, generator=generator).to(device) / hidden**0.5,
        -3 * torch.rand(count, generator=generator).to(device),
        max(stop - start for start, stop in ranges),
    )


def simple(states: list[list[float]], lse: list[float], mu: list[float], constant: float) -> Case:
    """One row that is compared with a whole page."""
    return Case(
        states=torch.tensor([states]),
        lse=torch.tensor([*lse, math.nan]),
        tables=torch.zeros(1, 1, dtype=torch.int32),
        rows=torch.zeros(1, dtype=torch.int64),
        starts=torch.tensor([0], dtype=torch.int32),
        stops=torch.tensor([len(states)], dtype=torch.int32),
        mu=torch.tensor([mu]),
        neg_entropy=torch.tensor([constant]),
        most=len(states),
    )


def assert_parity(name: str, case: Case) -> None:
    """Asserts that the smallest distances agree and belong to the reported positions."""
    kl, position = (t.cpu() for t in case.found(name))
    expected = case.found("reference")
    assert (kl.dtype, position.dtype) == (torch.float32, torch.int32)
    torch.testing.assert_close(kl, expected.kl.cpu(), rtol=1e-5, atol=1e-5, equal_nan=True)
    for n, j in enumerate(position.tolist()):
        if math.isnan(kl[n]):
            continue
        start, stop = int(case.starts[n]), int(case.stops[n])
        if start >= stop:
            assert j == -1
            continue
        assert start <= j < stop
        there = history_reference.distance(
            case.states, case.lse, case.tables[case.rows[n]], j, case.mu[n], case.neg_entropy[n]
        )
        assert there == pytest.approx(float(kl[n]), rel=1e-5, abs=1e-5)
