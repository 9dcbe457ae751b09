"""Which back end is used, and how a wrong one is detected."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from divserve_kernels import backends, selfcheck, torch_backend
from divserve_kernels.backends import BackEnd, available, choose
from tests.kernels.cases import CPU

DOUBLING = """
import ast, os, sys, time
from pathlib import Path
from numba.core.caching import IndexDataCacheFile
from divserve_kernels.numba_jit import compiled

@compiled()
def double(x): return x + x

def read(self):
    found = load(self)
    Path(f"{__file__}.{os.getpid()}").touch()
    end = time.monotonic() + 5
    while time.monotonic() < end and len(list(Path(__file__).parent.glob("*.py.*"))) < 2:
        time.sleep(0.01)
    return found

load, save = IndexDataCacheFile._load_index, IndexDataCacheFile.save

def saved(self, key, data):
    IndexDataCacheFile._load_index = read
    save(self, key, data)

IndexDataCacheFile.save = saved
double(ast.literal_eval(sys.argv[1]))
"""
"""Saves the machine code of a function; waits for another process to do so at the same time."""


def test_each_device_gets_its_best() -> None:
    assert choose(CPU).name == "numba"
    assert available(torch.device("cuda"))[0] == "triton"
    assert available(torch.device("meta")) == ("torch", "reference")


@pytest.mark.parametrize("name", ["numba", "torch", "reference"])
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVSERVE_KERNELS", name)
    found = selfcheck.check(CPU)
    assert (found.back_end, found.why) == (name, "DIVSERVE_KERNELS")
    assert found.passed
    assert found.error < 1e-5


def test_a_back_end_that_cannot_serve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIVSERVE_KERNELS", "triton")
    with pytest.raises(ValueError, match="for cpu there is numba, torch, reference"):
        choose(CPU)


def spoilt(kind: str) -> BackEnd:
    """The CPU's back end with one wrong figure."""

    def run(logits: Tensor, streams: Any, side: Tensor | None, out: Tensor) -> Tensor:
        statistics = torch_backend.guide(logits, streams, side, out)
        if kind == "statistic":
            statistics[4, 2] += 0.01
        elif kind == "nan":
            statistics[4, 2] = math.nan
        else:
            out[streams.primary[4]] *= 1.1
        return statistics

    return BackEnd("spoilt", run, "a test")


@pytest.mark.parametrize("kind", ["statistic", "nan", "logits"])
def test_a_wrong_back_end_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "choose", lambda _: spoilt(kind))
    assert not selfcheck.check(CPU).passed


def test_a_worker_refuses_wrong_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it serves any request."""
    from divserve.engine.worker import worker
    from divserve.errors import StartupError

    worker._check_kernels(CPU, 512)
    monkeypatch.setattr(backends, "choose", lambda _: spoilt("logits"))
    with pytest.raises(StartupError, match="DIVSERVE_KERNELS=torch avoids them"):
        worker._check_kernels(CPU, 512)


def test_an_engine_starts_where_numba_has_run() -> None:
    """vLLM's CPU engines inspect all loaded modules, including llvmlite's library."""
    from vllm.triton_utils.dispatcher import register_kernels

    assert selfcheck.check(CPU).back_end == "numba"
    register_kernels({})


def test_torch_keeps_its_threads() -> None:
    """In a process of its own: numba starts its threads, which OpenMP counts for torch, once."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from divserve_kernels.selfcheck import check\n"
        "assert check(torch.device('cpu')).passed\n"
        "print(torch.get_num_threads())"
    )
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "1", run.stderr


def test_processes_that_compile_at_once_save_their_own_code(tmp_path: Path) -> None:
    """Each would read the index of numba's cache before the other has written it."""
    (tmp_path / "doubling.py").write_text(DOUBLING)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-m", "doubling", number], env=environment)
        for number in ("1", "1.5")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert len(list(tmp_path.rglob("doubling.double-*.nbc"))) == 2
