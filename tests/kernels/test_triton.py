"""The Triton back end: without a GPU through the interpreter, and on a GPU."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from divserve_kernels.selfcheck import check
from tests.kernels import test_candidates, test_guide, test_history, test_nearness, test_parity
from tests.kernels.cases import INTERPRETED, assert_parity, back_end, made_up

ROOT = Path(__file__).resolve().parents[2]
MODULES = (test_candidates, test_guide, test_history, test_nearness, test_parity)
CPU_ONLY = {
    "test_parity_anywhere", "test_repeat_runs_are_bitwise_equal", "test_the_environment_decides",
}  # fmt: skip


def interpreted(chosen: str, *modules: ModuleType) -> set[str]:
    """Names of the tests that pass in a process whose Triton interprets."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, *(str(module.__file__) for module in modules)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    return set(re.findall(r"::(test_\w+)\[\S* PASSED", run.stdout))


@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_golden_vectors_through_the_interpreter() -> None:
    golden = {name for name in vars(test_guide) if name.startswith("test_golden")}
    assert interpreted("triton and golden", test_guide) == golden


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_parity_through_the_interpreter() -> None:
    of_back_ends = {
        test
        for module in MODULES
        for test, function in vars(module).items()
        if test.startswith("test_") and "name" in inspect.signature(function).parameters
    }
    assert interpreted("triton", *MODULES) == of_back_ends - CPU_ONLY


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("way", ["one launch", "phased"])
@pytest.mark.parametrize("vocab", [1, 111, 1271, 49152, 151936, 262145])
@pytest.mark.parametrize("count", [1, 3, 99])
def test_parity_on_a_gpu(count: int, vocab: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of launching, every method, sizes of real models."""
    if way == "phased":
        monkeypatch.setenv("DIVSERVE_TRITON", "phased")
    logits, streams = made_up(count, vocab, device=torch.device("cuda"))
    assert_parity(back_end("triton"), logits, streams)
    assert_parity(back_end("triton"), logits.bfloat16(), streams, poison=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
def test_a_graph_replays_it() -> None:
    """CUDA graphs: no host decision depends on data, and a replay repeats every bit."""
    device = torch.device("cuda")
    assert check(device).passed
    logits, streams = made_up(16, 49152, device=device)
    out, run = torch.empty_like(logits), back_end("triton")
    expected = run(logits, streams, None, out)
    wanted = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        statistics = run(logits, streams, None, out)
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert torch.equal(statistics, expected)
        assert torch.equal(out[streams.primary], wanted[streams.primary])
