"""Data-parallel ranks that share experts: they step together, with dummy batches where idle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

from divserve.engine.worker import worker
from tests.engine.cases import mismatches, mixed_cases
from tests.support import architectures
from tests.support.data_parallel import Ranks, data_parallel, spec
from tests.support.gathering import GatheringWorker, all_gatherv
from tests.support.hf import Reference
from tests.support.platform import cpu_only

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.make(architectures.named("Qwen3-MoE"), tmp_path_factory.mktemp("experts"))


@pytest.fixture
def ranks(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ranks]:
    """Each has a part of every expert, and reads prompts in every fourth step.

    `tests/e2e/test_own_ranks.py` has ranks with whole experts.
    """
    monkeypatch.setattr(worker, "GuidedCPUWorker", GatheringWorker)
    # Start-up looks at it; the workers put in theirs.
    monkeypatch.setattr(CpuCommunicator, "all_gatherv", all_gatherv)
    with data_parallel(model, prefill_schedule_interval=4) as ranks:
        yield ranks


def test_answers_are_those_of_the_reference(ranks: Ranks, model: Path) -> None:
    """A single request leaves one rank idle; in the batches both work. Then nothing is left."""
    cases = mixed_cases(Reference(model), guided=6, plain=4, longest=200, seed=12)

    async def ask(some: slice) -> list[list[int]]:
        asked = (
            ranks.ask(
                case.prompt, spec(case.method, case.guide), max_tokens=case.max_tokens,
                detokenize=False,
            )
            for case in cases[some]
        )  # fmt: skip
        return [answer.tokens for (answer,) in await asyncio.gather(*asked)]

    for some in (slice(1), slice(None), slice(None)):
        assert mismatches(cases[some], ranks.run(asyncio.wait_for(ask(some), 120))) == []
    assert all(ranks.sample("generation_tokens_total", rank) for rank in (0, 1))
    left = ranks.figures()
    assert set(left.values()) == {0}, left
