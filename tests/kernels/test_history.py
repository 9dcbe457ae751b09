"""Look-back's kernels: golden vector, the identity they are based on, parity with the reference."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from unittest.mock import Mock

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from divserve_kernels import expected_row, history_torch, nearest
from tests.kernels.cases import ALL, INTERPRETED
from tests.kernels.histories import GPU, TYPES, Case, assert_parity, made_up, simple

INF = math.inf
NAMES = ["reference", *ALL]
SIZES = [
    (hidden, block, dtype)
    for i, hidden in enumerate([1, 64, 97, 576])
    for j, block in enumerate([1, 16, 32, 128])
    for k, dtype in enumerate(TYPES)
    # A third of them covers each pair of values; all would take the interpreter too long.
    if not INTERPRETED or (i + j + k) % 3 == 0
]


@pytest.fixture(params=["whole", "pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once unchanged, once so that even short ranges take several chunks or turns of a program."""
    if request.param == "pieces":
        monkeypatch.setattr(history_torch, "CHUNK", 48)
        if INTERPRETED:
            monkeypatch.setattr("divserve_kernels.history_triton.PROGRAMS", 4)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str) -> None:
    """Computed by hand, with the identity for W."""
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
    """In one tile and in different ones; distances below 0, from rounding, count as 0."""
    case = simple([[0.0]] * 700, [2.0, 1.0, 3.0, 1.0, 4.0] * 140, [1.0], 0.0)
    for lse, constant, kl, position in (
        (case.lse, 0.0, 1.0, 698),
        (case.lse, -3.5, 0.0, 698),
        (torch.arange(701.0), 0.0, 0.0, 0),
        (torch.full((701,), INF), 0.0, INF, 699),
    ):
        found = replace(case, lse=lse, neg_entropy=torch.tensor([constant])).found(name)
        assert (found.kl.item(), found.position.item()) == (kl, position)


@pytest.mark.parametrize(("hidden", "block", "dtype"), SIZES)
@pytest.mark.parametrize("name", ALL)
def test_sizes(name: str, hidden: int, block: int, dtype: torch.dtype) -> None:
    """Ranges that are empty, of one position, unaligned to pages, or of whole pages."""
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
    """Several stretches, chunks and turns of a program; on the CPU, work for several threads."""
    # Interpreted tiles run one by one and have 16 positions: a range of 300 is as long.
    longest, rows = (300, 20) if INTERPRETED else (2600, 200)
    assert_parity(name, made_up([(0, longest), (1, 2), (17, longest // 2)], 97, 16, dtype))
    assert_parity(name, made_up([(0, 40)] * rows + [(3, longest // 2)], 64, 16, dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ALL)
def test_strided_tensors(name: str, dtype: torch.dtype) -> None:
    """A store inside other memory, every second table, rows and bounds of larger tensors."""
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
    """At the start, in the middle and at the end of a range of several tiles."""
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
    """All 16-bit floats, including denormals, have the values that torch gives them."""
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


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("hidden", [1, 97, 576, 4096])
def test_parity_on_a_gpu(hidden: int, dtype: torch.dtype) -> None:
    """Without waiting for the device, and again from a CUDA graph."""
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
