"""Model Runner V2, vLLM's default on NVIDIA, here through Triton's interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import ROOT, TINY_VOCAB, make_tiny


def ran(module: str, *arguments: str) -> Any:
    """The output of a module of ``tests.support``, run in its own process."""
    command = [sys.executable, "-m", f"tests.support.{module}", *arguments]
    child = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.long
def test_amateurs_and_continuations(tiny: Path, tmp_path: Path) -> None:
    """Methods of several models, and answers that another engine began."""
    amateur = make_tiny(tmp_path / "amateur", vocab_size=TINY_VOCAB - 24, seed=1)
    tuned = make_tiny(tmp_path / "tuned", vocab_size=TINY_VOCAB + 8, seed=2)
    result = ran("v2_two_models", str(tiny), str(amateur), str(tuned))
    assert "vllm.v1.worker.gpu.model_runner" in result["runner"]
    assert result["mismatches"] == []
    assert len(result["continued"]) == 4
    for rest, continuation in result["continued"]:
        assert rest == continuation
    assert set(result["leftovers"].values()) == {0}


@pytest.mark.parametrize(
    ("mode", "blocks"),
    [
        pytest.param("async", 11, id="tight"),
        pytest.param("async", 0, id="async", marks=pytest.mark.long),
        pytest.param("sync", 0, id="sync", marks=pytest.mark.long),
    ],
)
def test_mixed_batch_equals_reference(tiny: Path, mode: str, blocks: int) -> None:
    """Token identity, seeds, n = 2, preemption and aborts, as on V1."""
    result = ran("v2_child", str(tiny), mode, str(blocks))
    assert "vllm.v1.worker.gpu.model_runner" in result["runner"]
    assert result["mismatches"] == []
    first, second = result["seeded"]
    assert first == second
    assert first[0] != first[1]
    for moment in ("leftovers", "after aborts"):
        assert set(result[moment].values()) == {0}


@pytest.mark.long
@pytest.mark.parametrize(("mode", "blocks"), [("async", 0), ("sync", 11)], ids=["async", "tight"])
def test_look_back(tiny: Path, mode: str, blocks: int) -> None:
    """Tokens, KLs and candidates as Hugging Face has them, preemption and aborts, as on V1."""
    result = ran("v2_look_back", str(tiny), mode, str(blocks))
    assert "vllm.v1.worker.gpu.model_runner" in result["runner"]
    assert result["wrong"] == []
    assert result["alarms"] > 10
    assert (result["preempted"] > 0) == (blocks > 0)
    for moment in ("leftovers", "after aborts"):
        assert set(result[moment].values()) == {0}
