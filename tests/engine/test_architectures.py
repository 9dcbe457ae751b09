"""Token identity on models whose KV cache is not that of a Llama: windows, chunks, experts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.cases import Case, answers_of, mismatches
from tests.support.architectures import NAMES, make
from tests.support.engine import Engine, random_prompt
from tests.support.hf import Reference
from tests.support.models import TINY_VOCAB

LENGTHS = (
    ("cad", 33, 20), ("adacad", 64, 33), ("cfg", 65, 40), ("instructive", 97, 129),
    ("coiecd", 129, 1), ("adacad", 200, 65),
    ("", 33, 0), ("", 65, 0), ("", 129, 0), ("", 200, 0),
)  # fmt: skip
"""Method, tokens of the prompt, tokens of the guide; 1 modulo 32 is where a hit leaves only the
held token."""


@pytest.fixture(scope="module")
def inspected_here() -> Iterator[None]:
    """vLLM looks at the classes of a model in a new process, which takes longer than the tests."""
    from vllm.model_executor.models import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        yield


@pytest.fixture(scope="module", params=NAMES)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: Any, inspected_here: None
) -> Iterator[Any]:
    """An engine of one architecture, and the reference's answers."""
    path = make(request.param, tmp_path_factory.mktemp(request.param))
    rng, reference = random.Random(7), Reference(path)
    cases = []
    for method, length, guide_length in LENGTHS:
        prompt = random_prompt(rng, length, TINY_VOCAB)
        guide = random_prompt(rng, guide_length, TINY_VOCAB) if method else None
        expected = reference.greedy(prompt, guide, method, 12)
        cases.append(Case(prompt, guide, method, 12, expected))
    rng.shuffle(cases)
    engine = Engine(path)
    yield engine, cases
    engine.close()


def test_both_rounds_equal_the_reference(served: Any) -> None:
    """The second round hits the prefix cache. The two best tokens are as far apart, too: a few
    wrong positions of the cache need not change which of them is the best."""
    engine, cases = served
    for _ in range(2):
        answers = answers_of(engine, cases, logprobs=2)
        assert mismatches(cases, [list(answer.token_ids) for answer in answers]) == []
        for case, answer in zip(cases, answers, strict=True):
            assert margins(answer) == pytest.approx(case.expected.margins, abs=2e-3)
        assert set(engine.leftovers().values()) == {0}


def margins(answer: Any) -> list[float]:
    """Gap between the two best guided logits at each step."""
    best = [
        sorted((one.logprob for one in step.values()), reverse=True) for step in answer.logprobs
    ]
    return [first - second for first, second, *_ in best]
