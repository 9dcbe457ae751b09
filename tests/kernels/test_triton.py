"""The Triton back end where no GPU is: once more through the interpreter; and on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from divserve_kernels.selfcheck import check
from tests.kernels.cases import INTERPRETED, assert_parity, back_end, made_up

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="this is the inner run")
def test_parity_through_the_interpreter() -> None:
    """Golden vectors and parity, in a process whose Triton interprets: the passes one by one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    paths = [f"tests/kernels/test_{name}.py" for name in ("guide", "nearness", "parity")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [*command, *paths], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert int(run.stdout.split(" passed")[0].split()[-1]) > 75


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("way", ["one launch", "phased"])
@pytest.mark.parametrize("vocab", [1, 111, 1271, 49152, 151936, 262145])
@pytest.mark.parametrize("count", [1, 3, 99])
def test_parity_on_a_gpu(count: int, vocab: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of launching, every method, sizes of real models."""
    if way == "phased":
        monkeypatch.setenv("DIVSERVE_TRITON", "phased")
    logits, rows = made_up(count, vocab, device=torch.device("cuda"))
    assert_parity(back_end("triton"), logits, rows)
    assert_parity(back_end("triton"), logits.bfloat16(), rows, poison=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here")
def test_a_graph_replays_it() -> None:
    """CUDA graphs: no host decision depends on data, and a replay repeats every bit."""
    device = torch.device("cuda")
    assert check(device).passed
    logits, rows = made_up(16, 49152, device=device)
    out, run = torch.empty_like(logits), back_end("triton")
    expected = run(logits, rows, None, out)
    wanted = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        statistics = run(logits, rows, None, out)
    for _ in range(3):
        out.zero_()
        graph.replay()
        assert torch.equal(statistics, expected)
        assert torch.equal(out[rows.primary], wanted[rows.primary])
