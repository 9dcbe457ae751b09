"""Both model runners, each engine in a process of its own.

On an NVIDIA GPU these are the tests of engine identity: eager, CUDA graphs, compiled. Without one,
Model Runner V2, vLLM's default on NVIDIA, goes through Triton's interpreter, which takes long.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from divserve.engine.scheduler.governor import OPTION
from tests.engine.cases import LOGPROB_ERROR
from tests.support import limit
from tests.support.architectures import ARCHITECTURES, make
from tests.support.drafter import LOOKUP_ON_DEVICE
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.models_page import Row, record
from tests.support.platform import ON_GPU, OPTIONS, told

pytestmark = pytest.mark.gpu

LIMIT_S, COMPILED_LIMIT_S = (120, 300) if ON_GPU else (600, 600)
"""Seconds until a child is stopped: a launch that hangs must not hold the GPU."""
V2 = "vllm.v1.worker.gpu.model_runner"


@dataclass(frozen=True)
class Way:
    """How an engine runs its steps."""

    options: dict[str, Any] = field(default_factory=dict)
    v2: bool = True
    limit_s: float = LIMIT_S


EAGER = Way()
# Without the compiler, so that an engine starts in seconds.
GRAPHS = Way({"enforce_eager": False, "compilation_config": {"mode": 0, "cudagraph_mode": "FULL"}})
# What the benches use: prompts run without a graph.
DECODE_GRAPHS = Way(
    {
        "enforce_eager": False,
        "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
    }
)
COMPILED = Way({"enforce_eager": False}, limit_s=COMPILED_LIMIT_S)
V1 = Way(v2=False)
V1_GRAPHS = Way(GRAPHS.options, v2=False)
DRAFTS: dict[str, Any] = {
    "speculative_config": LOOKUP_ON_DEVICE,
    # All drafts are verified, whatever they cost here.
    "additional_config": {OPTION: False},
}


def case(*values: Any, name: str, long: bool = not ON_GPU) -> Any:
    """A set of parameters that every machine runs; they take long without a GPU."""
    return pytest.param(*values, id=name, marks=[pytest.mark.long] if long else [])


def gpu_case(*values: Any, name: str, long: bool = False) -> Any:
    """A set of parameters that needs a GPU."""
    needs = pytest.mark.skipif(not ON_GPU, reason="CUDA graphs and V1's CUDA path need a GPU")
    return pytest.param(*values, id=name, marks=[needs, *([pytest.mark.long] if long else [])])


def ran(way: Way, module: str, *arguments: str) -> Any:
    """The output of a module of ``tests.support``, run in its own process."""
    command = [sys.executable, "-m", f"tests.support.{module}", *arguments]
    variables = {
        **os.environ,
        # Whoever runs the tests may ask for more, such as another attention back end.
        OPTIONS: json.dumps(way.options | told()),
        "VLLM_USE_V2_MODEL_RUNNER": str(int(way.v2)),
    }
    result = json.loads(limit.run(command, variables, way.limit_s).splitlines()[-1])
    assert (V2 in result["runner"]) == way.v2
    return result


@pytest.mark.parametrize(
    "way",
    [
        case(EAGER, name="eager"),
        gpu_case(GRAPHS, name="graphs"),
        gpu_case(COMPILED, name="compiled", long=True),
    ],
)
def test_amateurs_and_continuations(way: Way, tiny: Path, tmp_path: Path) -> None:
    """Methods of several models, and answers that another engine began."""
    amateur = make_tiny(tmp_path / "amateur", vocab_size=TINY_VOCAB - 24, seed=1)
    tuned = make_tiny(tmp_path / "tuned", vocab_size=TINY_VOCAB + 8, seed=2)
    result = ran(way, "child_two_models", str(tiny), str(amateur), str(tuned))
    assert result["mismatches"] == []
    assert len(result["continued"]) == 4
    for rest, continuation in result["continued"]:
        assert rest == continuation
    assert set(result["leftovers"].values()) == {0}


@pytest.mark.parametrize(
    ("way", "mode", "blocks"),
    [
        case(EAGER, "async", 11, name="tight", long=False),
        case(EAGER, "async", 0, name="async"),
        case(EAGER, "sync", 0, name="sync"),
        gpu_case(GRAPHS, "async", 0, name="graphs"),
        gpu_case(GRAPHS, "async", 11, name="graphs, tight"),
        gpu_case(DECODE_GRAPHS, "async", 0, name="decode graphs"),
        gpu_case(V1, "async", 0, name="V1"),
        gpu_case(V1_GRAPHS, "async", 0, name="V1, graphs"),
        gpu_case(COMPILED, "async", 0, name="compiled", long=True),
        case(Way(DRAFTS), "async", 11, name="drafts, tight"),
        case(Way(DRAFTS), "sync", 0, name="drafts, sync"),
        gpu_case(Way(GRAPHS.options | DRAFTS), "async", 0, name="drafts, graphs"),
    ],
)
def test_mixed_batch_equals_reference(way: Way, mode: str, blocks: int, tiny: Path) -> None:
    """Token identity, seeds, n = 2, preemption, aborts and drafts, as on V1."""
    result = ran(way, "child_mixed", str(tiny), mode, str(blocks))
    assert result["mismatches"] == result["wrong tops"] == []
    first, second = result["seeded"]
    assert first == second == result["all rows sampled"]
    assert first[0] != first[1]
    for moment in ("leftovers", "after aborts"):
        assert set(result[moment].values()) == {0}
    if "speculative_config" in way.options:
        drafts = result["drafts"]
        assert drafts["uneven"] == []
        # Of answers with 160 tokens in all.
        assert drafts["accepted"] > 40 < drafts["rejected"]


@pytest.mark.parametrize(
    ("way", "mode", "blocks"),
    [
        case(EAGER, "async", 0, name="async"),
        case(EAGER, "sync", 11, name="tight"),
        gpu_case(GRAPHS, "async", 0, name="graphs"),
        gpu_case(COMPILED, "async", 0, name="compiled", long=True),
        gpu_case(V1_GRAPHS, "async", 0, name="V1, graphs", long=True),
    ],
)
def test_look_back(way: Way, mode: str, blocks: int, tiny: Path) -> None:
    """Tokens, KLs and candidates as Hugging Face has them, preemption and aborts, as on V1."""
    result = ran(way, "child_look_back", str(tiny), mode, str(blocks))
    assert result["wrong"] == []
    assert result["alarms"] > 10
    assert (result["preempted"] > 0) == (blocks > 0)
    for moment in ("leftovers", "after aborts"):
        assert set(result[moment].values()) == {0}


@pytest.mark.parametrize("way", [case(EAGER, name="eager"), gpu_case(V1, name="V1")])
def test_recurrent_state(way: Way, tmp_path: Path) -> None:
    """A hybrid: two rounds, asynchronous, in a tight cache."""
    (hybrid,) = (one for one in ARCHITECTURES if one.title.startswith("Granite"))
    result = ran(way, "child_hybrid", str(make(hybrid, tmp_path)))
    assert result["worst"] < LOGPROB_ERROR
    assert result["lengths"] == [12]
    assert result["preempted"]
    assert set(result["leftovers"].values()) == {0}
    if not ON_GPU:
        record(
            Row(
                "architecture", f"{hybrid.title}, Model Runner V2",
                "two rounds, asynchronous and preempting",
                "float32, V2 in Triton's interpreter, CPU", "transformers, float32",
                result["worst"],
            )
        )  # fmt: skip
