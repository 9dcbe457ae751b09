"""Pipelines of two stages: the last one guides, and several steps are in flight."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import test_groups
from tests.engine.cases import Case, mismatches, mixed_cases, order_of, run
from tests.engine.test_runners import EAGER, ran
from tests.support.engine import Engine, counted
from tests.support.hf import Reference
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second stage")]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    """Two worker processes, each with one of the two layers, and little memory."""
    engine = Engine(tiny, pipeline_parallel_size=2, blocks=18, max_model_len=512)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cases(tiny_reference: Reference) -> list[Case]:
    return mixed_cases(tiny_reference, guided=9, plain=4, longest=200, seed=1)


def test_a_mixed_batch_equals_the_reference(engine: Engine, cases: list[Case]) -> None:
    """All at once they are preempted. A few hit the prefix cache when they are run again."""
    preempted = counted(engine.scheduler, "_preempt_request")
    for some in (cases, cases, cases[:3], cases[:3]):
        assert mismatches(some, run(engine, some)) == []
        assert set(engine.leftovers().values()) == {0}
    assert preempted
    record(
        Row(
            "parallel",
            "`--pipeline-parallel-size 2`",
            "9 guided and 4 plain, two rounds, preempting, several steps in flight",
            "tiny Llama, float32, V1, CPU, synchronous",
            "Hugging Face float32, token by token",
        )
    )


def test_all_kinds_of_groups(engine: Engine, tiny_reference: Reference) -> None:
    """Two guides, texts that are read, temperatures of guides, methods without a second stream."""
    groups = test_groups.make_cases(tiny_reference, rounds=1)
    assert test_groups.mismatches(groups, test_groups.run(engine, groups)) == []
    assert set(engine.leftovers().values()) == {0}


def test_a_storm_of_aborts_leaves_nothing(engine: Engine, cases: list[Case]) -> None:
    """Requests come and go at random steps, while others and their steps are in flight."""
    from vllm import SamplingParams

    rng, queue = random.Random(3), engine.core.engine_core.engine_core.batch_queue
    most = 0
    for i in range(120):
        case = rng.choice(cases)
        params = SamplingParams(
            temperature=0,
            max_tokens=case.max_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=order_of(case),
        )
        engine.core.add_request(f"r{i}", {"prompt_token_ids": case.prompt}, params)
        for _ in range(rng.randrange(4)):
            engine.core.step()
            most = max(most, len(queue))
        if i >= 6:
            engine.core.abort_request([f"r{rng.randrange(i - 6, i + 1)}"])
    engine.core.abort_request([f"r{i}" for i in range(120)])
    assert most > 0, "steps were never in flight"
    assert set(engine.leftovers().values()) == {0}
    assert mismatches(cases, run(engine, cases)) == []


@pytest.mark.parametrize(("mode", "blocks"), [("async", 11), ("sync", 0)])
def test_model_runner_v2(mode: str, blocks: int, tiny: Path) -> None:
    """Asynchronous: a request takes its next token as many steps later as there are stages."""
    result = ran(EAGER, "child_pipeline", str(tiny), mode, str(blocks))
    assert result["mismatches"] == []
    assert bool(result["preempted"]) == bool(blocks)
    for moment in ("leftovers", "after aborts"):
        assert set(result[moment].values()) == {0}
    if mode == "async":
        record(
            Row(
                "parallel",
                "`--pipeline-parallel-size 2`, asynchronous",
                "8 guided and 3 plain, preempting, aborts",
                "tiny Llama, float32, V2 in Triton's interpreter, CPU",
                "Hugging Face float32, token by token",
            )
        )
