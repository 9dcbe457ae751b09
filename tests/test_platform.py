"""What tests of engines get on a CPU and on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from divserve.engine.scheduler.scheduler import AsyncLockstepScheduler
from divserve.engine.worker.worker import GuidedCPUWorker, GuidedGPUWorker
from tests.support import platform
from tests.support.models import ROOT

WORKERS = {False: GuidedCPUWorker, True: GuidedGPUWorker}


def named(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_engines_get_the_worker_and_the_memory_of_the_platform(on_gpu: bool) -> None:
    found = platform.engine_options(lockstep=True, asynchronous=True, on_gpu=on_gpu)
    assert found.pop("worker_cls") == named(WORKERS[on_gpu])
    assert found.pop("scheduler_cls") == named(AsyncLockstepScheduler)
    stock = platform.engine_options(lockstep=False, asynchronous=True, on_gpu=on_gpu)
    assert found == stock
    assert stock.pop("async_scheduling")
    assert set(stock) == ({"gpu_memory_utilization", "kv_cache_memory_bytes"} if on_gpu else set())
    # Two servers, or an engine beside a server.
    assert 2 * stock.get("gpu_memory_utilization", 0) < 1
    assert bool(platform.server_flags(on_gpu)) == on_gpu


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.told() == {}
    monkeypatch.setenv(platform.OPTIONS, json.dumps({"enforce_eager": False}))
    assert platform.told() == {"enforce_eager": False}


def test_a_gpu_is_asked_for_engine_identity() -> None:
    """What `pytest -m gpu tests/engine` selects: no machine without a GPU runs all of it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "tests/engine"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    for name in (
        "test_mixed_batch_equals_reference[async]",
        "test_mixed_batch_equals_reference[graphs, tight]",
        "test_mixed_batch_equals_reference[V1, graphs]",
        "test_amateurs_and_continuations[graphs]",
        "test_look_back[graphs]",
        "test_token_identity.py",
    ):
        assert name in run.stdout
