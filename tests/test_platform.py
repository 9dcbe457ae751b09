"""What tests of engines get on a CPU and on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from divserve.engine.scheduler.scheduler import AsyncLockstepScheduler
from divserve.engine.worker.worker import GuidedCPUWorker, GuidedGPUWorker
from tests.engine import test_runners
from tests.engine.cases import shared
from tests.support import child_mixed, limit, platform
from tests.support.engine import LOAD_FORMAT, llm_arguments
from tests.support.hf import Answer
from tests.support.models import ROOT
from tests.support.platform import cpu_only

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


def test_the_environment_reaches_the_engines_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def run(command: list[str], environment: dict[str, str], limit_s: float) -> str:
        given.update(environment)
        return json.dumps({"runner": [test_runners.V2]})

    monkeypatch.setattr(limit, "run", run)
    monkeypatch.setenv(platform.OPTIONS, json.dumps({"attention_backend": "TRITON_ATTN"}))
    test_runners.ran(test_runners.GRAPHS, "child_mixed")
    options = test_runners.GRAPHS.options | {"attention_backend": "TRITON_ATTN"}
    assert json.loads(given[platform.OPTIONS]) == options


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_a_test_asks_for_wins(on_gpu: bool) -> None:
    """Over the platform's arguments; a load format is that of the models beneath ours."""
    asked = {"kv_cache_memory_bytes": 7, "blocks": 5, "dtype": "bfloat16", "load_format": "dummy"}
    plain = llm_arguments(asked, lockstep=False, on_gpu=on_gpu)
    assert (plain["kv_cache_memory_bytes"], plain["num_gpu_blocks_override"]) == (7, 5)
    assert (plain["dtype"], plain["load_format"]) == ("bfloat16", "dummy")
    assert not {"blocks", "worker_cls", "scheduler_cls"} & set(plain)
    beside = llm_arguments(
        asked | {"look_back": True, "asynchronous": True}, lockstep=True, on_gpu=on_gpu
    )
    assert beside["load_format"] == LOAD_FORMAT
    assert beside["model_loader_extra_config"]["load_format"] == "dummy"
    assert beside["model_loader_extra_config"]["hidden_states"]
    assert beside["async_scheduling"]
    assert beside["worker_cls"] == named(WORKERS[on_gpu])
    assert not {"look_back", "amateurs", "asynchronous"} & set(beside)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_children_interpret_where_there_is_no_gpu(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton.backends

    monkeypatch.setattr(os, "environ", {"VLLM_USE_V2_MODEL_RUNNER": "0"})
    monkeypatch.setattr(triton.backends, "backends", {})
    monkeypatch.setattr(child_mixed, "ON_GPU", on_gpu)
    child_mixed.prepare()
    assert ("TRITON_INTERPRET" in os.environ) == (not on_gpu)
    assert ("cpu" in triton.backends.backends) == (not on_gpu)
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert os.environ["TRITON_F32_DEFAULT"] == "ieee"


def test_a_gpu_decides_no_near_ties() -> None:
    expected = Answer(tokens=[5, 6, 7], margins=[1.0, 0.5, 1e-6])
    assert [shared(expected, on_gpu=on_gpu) for on_gpu in (False, True)] == [3, 2]


IDENTITY = (
    "tests/engine/test_runners.py",
    "tests/engine/test_token_identity.py",
    "tests/engine/test_many_prompts.py",
    "tests/smollm2/test_token_identity.py",
)
PRETEND = """
import os, sys
import pytest, torch

# Visible only to the check that does not start CUDA.
torch.cuda.is_available = lambda: os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK") == "1"

class Selected:
    def pytest_collection_finish(self, session):
        for item in session.items:
            if not any(mark.args[0] for mark in item.iter_markers("skipif")):
                print("would run", item.nodeid)

sys.exit(pytest.main(sys.argv[1:], [Selected()]))
"""


@cpu_only("the machine need not be pretended")
def test_a_gpu_runs_engine_identity() -> None:
    """What `pytest -m "gpu and not long"` would run on a machine with a GPU; only of files that do
    not import vLLM, which takes long."""
    options = ["--collect-only", "-q", "-s", "-m", "gpu and not long", *IDENTITY]
    command = [sys.executable, "-c", PRETEND, *options]
    environment = {k: v for k, v in os.environ.items() if k != "PYTORCH_NVML_BASED_CUDA_CHECK"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    for name in (
        "test_mixed_batch_equals_reference[tight]",
        "test_mixed_batch_equals_reference[async]",
        "test_mixed_batch_equals_reference[sync]",
        "test_mixed_batch_equals_reference[graphs, tight]",
        "test_mixed_batch_equals_reference[decode graphs]",
        "test_mixed_batch_equals_reference[V1]",
        "test_mixed_batch_equals_reference[V1, graphs]",
        "test_amateurs_and_continuations[eager]",
        "test_amateurs_and_continuations[graphs]",
        "test_look_back[async]",
        "test_look_back[graphs]",
    ):
        assert f"would run tests/engine/test_runners.py::{name}\n" in run.stdout
    for file in IDENTITY:
        assert f"would run {file}::" in run.stdout
    assert "compiled" not in run.stdout
