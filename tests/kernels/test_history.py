"""Look-back's kernels: golden vector, the identity they rest on, parity with the reference."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from divserve_kernels import Nearest, expected_row, history_reference, history_torch, nearest
from divserve_kernels.history_mean import halves
from tests.kernels.cases import ALL, CPU, INTERPRETED

ROOT = Path(__file__).resolve().parents[2]
INF = math.inf
NAMES = ["reference", *ALL]
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
        """Where position j of row n is."""
        block = self.states.shape[1]
        return int(self.tables[self.rows[n], j // block]) * block + j % block

    def tensors(self) -> list[Tensor]:
        """All arguments but the last."""
        return [getattr(self, field.name) for field in fields(self)[:-1]]

    def found(self, name: str) -> Nearest:
        """What a back end finds."""
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
    """Pages in any order; whatever no range covers is NaN, or a page that does not exist."""
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
    """One row that is compared with all of one page."""
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
    """The least distances agree, and they are those of the positions that are named."""
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


@pytest.fixture(params=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it is, once so that short ranges too take several chunks, or turns of a program."""
    if request.param == "pieces":
        monkeypatch.setattr(history_torch, "CHUNK", 48)
        if INTERPRETED:
            monkeypatch.setattr("divserve_kernels.history_triton.PROGRAMS", 4)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    """algorithms.md §15, with the identity for W."""
    current = [0.66, 0.24, 0.10]
    history = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.65, 0.25, 0.1]]
    constant = sum(p * math.log(p) for p in current)
    logs = [[math.log(p) for p in row] for row in history]
    for j, expected in enumerate([0.004922, 0.956512, 0.000279]):
        found = simple(logs[j : j + 1], [0.0], current, constant).found(name)
        assert found.kl.item() == pytest.approx(expected, abs=1e-6)
    found = simple(logs, [0.0] * 3, current, constant).found(name)
    assert found.kl.item() == pytest.approx(0.000279, abs=1e-6)
    assert found.position.item() == 2


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", NAMES)
def test_the_latest_of_equals(name: str) -> None:
    """In a tile and in different ones; distances below 0, of rounding, count as 0."""
    case = simple([[0.0]] * 700, [2.0, 1.0, 3.0, 1.0, 4.0] * 140, [1.0], 0.0)
    for lse, constant, kl, position in (
        (case.lse, 0.0, 1.0, 698),
        (case.lse, -3.5, 0.0, 698),
        (torch.arange(701.0), 0.0, 0.0, 0),
        (torch.full((701,), INF), 0.0, INF, 699),
    ):
        found = replace(case, lse=lse, neg_entropy=torch.tensor([constant])).found(name)
        assert (found.kl.item(), found.position.item()) == (kl, position)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("block", [1, 16, 32, 128])
@pytest.mark.parametrize("hidden", [1, 64, 97, 576])
@pytest.mark.parametrize("name", ALL)
def test_sizes(name: str, hidden: int, block: int, dtype: torch.dtype) -> None:
    """Ranges that are empty, of one position, not aligned to pages, and of whole pages."""
    unaligned, whole = (block // 2 + 3, 2 * block + 5), (0, min(2 * block, 64))
    for ranges in (
        [unaligned],
        [(0, 0), whole, (7, 8)],
        [(i, i + (5 * i) % 23) for i in range(15)] + [unaligned, (9, 4)],
    ):
        assert_parity(name, made_up(ranges, hidden, block, dtype, seed=hidden))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ALL)
def test_long_ranges(name: str, dtype: torch.dtype) -> None:
    """Several stretches, chunks and turns of a program; on the CPU, more than one thread's work."""
    ranges = [(0, 2600), (1, 2), (17, 1500)]
    assert_parity(name, made_up(ranges, 97, 16, dtype))
    assert_parity(name, made_up([(0, 40)] * 200 + [(3, 1100)], 64, 16, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ALL)
def test_strided_tensors(name: str, dtype: torch.dtype) -> None:
    """A store between others' memory, every second table, rows and bounds of larger tensors."""
    case = made_up([(3, 50), (0, 7), (20, 61)], 64, 16, dtype)
    expected = case.found(name)
    wide = torch.full((case.states.shape[0], 3, 18, 80), math.nan, dtype=dtype)
    wide[:, 1, 1:17, 8:72] = case.states
    tables = case.tables.repeat_interleave(2, 0)
    tables[1::2] = 2**30
    tables = torch.nn.functional.pad(tables, (2, 1), value=-1)[::2, 2:-1]
    other = torch.nn.functional.pad(case.mu, (8, 8), value=math.nan)
    strided = replace(
        case,
        states=wide[:, 1, 1:17, 8:72],
        tables=tables,
        mu=other[:, 8:-8],
        rows=case.rows.repeat_interleave(2)[::2],
        starts=case.starts.repeat_interleave(2)[::2],
        stops=case.stops.repeat_interleave(3)[::3],
        neg_entropy=case.neg_entropy.repeat_interleave(2)[::2],
    )
    found = strided.found(name)
    assert torch.equal(found.kl, expected.kl)
    assert torch.equal(found.position, expected.position)
    # numba leaves gaps in rows to torch.
    if name != "triton":
        gaps = torch.stack((case.states, case.states), -1)[..., 0]
        assert gaps.stride(-1) == 2
        assert_parity(name, replace(case, states=gaps))


@pytest.mark.parametrize("where", ["lse", "states", "mu", "neg_entropy"])
@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_row(name: str, where: str) -> None:
    """At the start, between and at the end of a range of several tiles."""
    ranges = [(5, 300)] * 3
    clean = made_up(ranges)
    expected = clean.found(name)
    for j in (5, 150, 151, 299):
        case = made_up(ranges)
        broken = getattr(case, where)
        if where == "lse":
            broken[case.slot(1, j)] = math.nan
        elif where == "states":
            broken[case.tables[case.rows[1], j // 16], j % 16, 3] = math.nan
        else:
            broken[1] = math.nan
        kl, position = case.found(name)
        assert math.isnan(kl[1])
        assert torch.equal(kl[::2], expected.kl[::2])
        assert torch.equal(position[::2], expected.position[::2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_every_short_float(name: str, dtype: torch.dtype) -> None:
    """All numbers of 16 bits, denormal ones too, mean what torch says."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    numbers = numbers[numbers.float() <= 0]
    if INTERPRETED or name == "triton":
        numbers = numbers[::251]
    for part in numbers.split(4096):
        count = len(part)
        case = Case(
            part[:, None, None].clone(),
            torch.zeros(count + 1),
            torch.arange(count, dtype=torch.int32)[:, None],
            torch.arange(count),
            torch.zeros(count, dtype=torch.int32),
            torch.ones(count, dtype=torch.int32),
            torch.ones(count, 1),
            torch.zeros(count),
            1,
        )
        torch.testing.assert_close(case.found(name).kl, -part.float(), rtol=0, atol=0)


@given(seed=st.integers(0, 2**31), vocab=st.integers(2, 300), hidden=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_the_identity(seed: int, vocab: int, hidden: int) -> None:
    """KL(p ‖ p_j) from hidden states is Σ p (log p − log p_j)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, hidden, generator=generator)
    states = torch.randn(21, hidden, generator=generator) / hidden**0.5 * 3
    logits = states.double() @ weight.double().T
    logs = logits.log_softmax(-1)
    divergences = (logs[20].exp() * (logs[20] - logs[:20])).sum(-1)
    probs = logs[20:].exp().float()
    found = nearest(
        states[:20].view(5, 4, hidden),
        torch.cat((logits[:20].logsumexp(-1).float(), torch.tensor([math.nan]))),
        torch.arange(5, dtype=torch.int32)[None],
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([0], dtype=torch.int32),
        torch.tensor([20], dtype=torch.int32),
        expected_row(probs, weight),
        (logs[20].exp() * logs[20]).sum()[None].float(),
        most=20,
    )
    assert found.kl.item() == pytest.approx(divergences.min().item(), abs=1e-4)
    there = divergences[found.position.item()].item()
    assert there == pytest.approx(divergences.min().item(), abs=1e-4)


@pytest.mark.parametrize("name", ["numba", "torch", "reference"])
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = made_up([(3, 50), (0, 7)])
    called = Mock(side_effect=importlib.import_module(f"divserve_kernels.history_{name}").nearest)
    monkeypatch.setattr(f"divserve_kernels.history_{name}.nearest", called)
    monkeypatch.setenv("DIVSERVE_KERNELS", name)
    found = nearest(*case.tensors(), most=case.most)
    called.assert_called_once()
    torch.testing.assert_close(found.kl, case.found("reference").kl)


@pytest.mark.parametrize(("count", "most"), [(0, 5), (2, 0)])
def test_nothing_to_compare(count: int, most: int) -> None:
    case = made_up([(0, 0)] * 2)
    store, of_rows = case.tensors()[:3], case.tensors()[3:]
    found = nearest(*store, *(t[:count] for t in of_rows), most=most)
    assert found.kl.tolist() == [INF] * count
    assert found.position.tolist() == [-1] * count
    assert found.position.dtype is torch.int32


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


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_parity_through_the_interpreter() -> None:
    """The Triton back end where no GPU is, in a process whose Triton interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, __file__], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert int(run.stdout.split(" passed")[0].split()[-1]) > 55


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [1, 97, 576, 4096])
def test_parity_on_a_gpu(hidden: int, dtype: torch.dtype) -> None:
    """Without waiting for the device, and once more from a CUDA graph."""
    device = torch.device("cuda")
    ranges = [(3, 500), (0, 0), (17, 18), *((i, 2 * i) for i in range(60))]
    case = made_up(ranges, hidden, 16, dtype, device)
    for name in ("triton", "torch"):
        assert_parity(name, case)
    expected = case.found("triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for name in ("triton", "torch"):
            case.found(name)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = case.found("triton")
    for t in found:
        t.zero_()
    graph.replay()
    assert torch.equal(found.kl, expected.kl)
    assert torch.equal(found.position, expected.position)


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
