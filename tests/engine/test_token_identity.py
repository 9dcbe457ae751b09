"""Greedy answers equal two separate Hugging Face forwards, in every mode of the engine."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.cases import LOGPROB_ERROR, Case, mismatches, mixed_cases, run, shared
from tests.support.engine import Engine, order
from tests.support.hf import Reference
from tests.support.platform import ON_GPU

pytestmark = pytest.mark.gpu

ROOMY: dict[str, Any] = {"max_model_len": 1024}
TIGHT: dict[str, Any] = {"max_model_len": 512, "blocks": 18}
"""Seventeen usable blocks of 32 tokens for sixteen rows: constant preemption."""

MODES = {
    "sync": ROOMY,
    "async": ROOMY | {"asynchronous": True},
    "no prefix cache": ROOMY | {"enable_prefix_caching": False},
    "async, no prefix cache": ROOMY | {"asynchronous": True, "enable_prefix_caching": False},
    "budget of 32 tokens, 5 rows": ROOMY | {"max_num_batched_tokens": 32, "max_num_seqs": 5},
    "tight": TIGHT,
    "tight, async": TIGHT | {"asynchronous": True},
    "tight, async, no prefix cache": TIGHT | {"asynchronous": True, "enable_prefix_caching": False},
    "tight, priority": TIGHT | {"asynchronous": True, "scheduling_policy": "priority"},
}


@pytest.fixture(scope="module")
def cases(tiny_reference: Reference) -> list[Case]:
    """Twenty guided and eight plain requests."""
    return mixed_cases(tiny_reference, guided=20, plain=8, longest=200, seed=1)


PAIRS = {
    "async",
    "no prefix cache",
    "budget of 32 tokens, 5 rows",
    "tight, async, no prefix cache",
    "tight, priority",
}
"""Covers any two settings; `test_tight_cache_does_preempt_groups` is tight and sync."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(options, id=name, marks=() if name in PAIRS else pytest.mark.long)
        for name, options in MODES.items()
    ],
)
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine per mode."""
    engine = Engine(tiny, **request.param)
    yield engine
    engine.close()


def test_mixed_batch_equals_reference(engine: Engine, cases: list[Case]) -> None:
    """The second round hits the prefix cache that the first has filled."""
    rng = random.Random(0)
    by_priority = engine.scheduler.policy.value == "priority"
    for _ in range(2):
        options = {"priority": [rng.randrange(3) for _ in cases]} if by_priority else {}
        assert mismatches(cases, run(engine, cases, **options)) == []
        assert set(engine.leftovers().values()) == {0}


def test_tight_cache_does_preempt_groups(tiny: Path, cases: list[Case]) -> None:
    """Guards the tests above: with this cache, whole groups really are preempted."""
    engine = Engine(tiny, **TIGHT)
    preempted: Counter[int] = Counter()
    preempt = engine.scheduler.preempt

    def counting(unit: Any) -> None:
        preempted[len(unit)] += 1
        preempt(unit)

    engine.scheduler.preempt = counting
    assert mismatches(cases, run(engine, cases)) == []
    assert preempted[2] > 0
    engine.close()


@pytest.mark.parametrize(("prompt", "guide", "urgent"), [(200, 100, 400), (400, 100, 500)])
def test_urgent_request_cannot_starve_a_half_admitted_pair(
    tiny: Path, prompt: int, guide: int, urgent: int
) -> None:
    """The pair's primary holds blocks that the urgent request needs; its guide is not admitted."""
    from vllm import SamplingParams

    def params(**fields: Any) -> Any:
        return SamplingParams(
            temperature=0, max_tokens=4, ignore_eos=True, detokenize=False, **fields
        )

    engine = Engine(tiny, **TIGHT, scheduling_policy="priority", enable_prefix_caching=False)
    pair = params(extra_args=order("cad", [9] * guide))
    engine.core.add_request("pair", {"prompt_token_ids": [7] * prompt}, pair, priority=5)
    engine.core.step()
    engine.core.add_request("urgent", {"prompt_token_ids": [8] * urgent}, params(), priority=0)
    finished = {o.request_id for _ in range(60) for o in engine.core.step() if o.finished}
    assert finished == {"pair", "urgent"}
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def test_plain_requests_equal_a_server_without_divserve(tiny: Path, cases: list[Case]) -> None:
    """In a batch mixed with guided requests, plain ones answer as on stock vLLM."""
    from vllm import SamplingParams

    def params(case: Case) -> Any:
        return SamplingParams(
            temperature=0, max_tokens=case.max_tokens, ignore_eos=True, detokenize=False, logprobs=3
        )

    plain = [c for c in cases if c.guide is None]
    stock = Engine(tiny, lockstep=False)
    expected = stock.generate([(c.prompt, params(c)) for c in plain])
    stock.close()
    ours = Engine(tiny)
    mixed = [(c.prompt, params(c)) for c in cases]
    for case, (_, sampling) in zip(cases, mixed, strict=True):
        if case.guide:
            sampling.extra_args = order(case.method, case.guide)
    outputs = ours.generate(mixed)
    got = [o for o, c in zip(outputs, cases, strict=True) if c.guide is None]
    ours.close()
    for case, output, stock_output in zip(plain, got, expected, strict=True):
        (mine,), (theirs,), sure = output.outputs, stock_output.outputs, shared(case.expected)
        assert len(mine.token_ids) == len(theirs.token_ids)
        assert mine.token_ids[:sure] == theirs.token_ids[:sure]
        for a, b in zip(mine.logprobs[:sure], theirs.logprobs[:sure], strict=True):
            # Which token is the last of the best may be a near-tie, too.
            assert ON_GPU or a.keys() == b.keys()
            for token in a.keys() & b.keys():
                assert a[token].logprob == pytest.approx(b[token].logprob, abs=LOGPROB_ERROR)
