"""Model Runner V2, vLLM's default on NVIDIA, here through Triton's interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "blocks"), [("async", 0), ("async", 11), ("sync", 0)], ids=["async", "tight", "sync"]
)
def test_mixed_batch_equals_reference(tiny: Path, mode: str, blocks: int) -> None:
    """Token identity, seeds, n = 2, preemption and aborts, as on V1."""
    command = [sys.executable, "-m", "tests.support.v2_child", str(tiny), mode, str(blocks)]
    child = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert child.returncode == 0, child.stderr[-3000:]
    result = json.loads(child.stdout.splitlines()[-1])
    assert "vllm.v1.worker.gpu.model_runner" in result["runner"]
    assert result["mismatches"] == []
    first, second = result["seeded"]
    assert first == second
    assert first[0] != first[1]
    for moment in ("leftovers", "after aborts"):
        assert set(result[moment].values()) == {0}
