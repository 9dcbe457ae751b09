"""Entropy-adaptive switching with drafts: the rule is asked at each of the tokens of a step."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from divserve.engine.scheduler.governor import OPTION
from tests.engine import test_switching
from tests.engine.test_switching import RULE, TOKENS, agrees, replay
from tests.support.engine import random_prompt
from tests.support.two_engines import switching, two_engines

pytestmark = pytest.mark.long

LOOKUP = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 2,
}
VOCAB = test_switching.VOCAB
large, small = test_switching.large, test_switching.small
models, threshold = test_switching.models, test_switching.threshold


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Phrases that repeat, so that lookup finds drafts."""
    rng = random.Random(1)
    return [(random_prompt(rng, rng.choice([3, 5, 8]), VOCAB) * 20)[:60] for _ in range(8)]


def test_answers_equal_the_replay(
    large: Path,
    small: Path,
    models: Any,
    prompts: list[list[int]],
    threshold: float,
) -> None:
    starts = ["small", "large"]
    options: dict[str, Any] = {"speculative_config": LOOKUP, "additional_config": {OPTION: False}}
    with two_engines(large, small, served_model_name=["tiny"], **options) as pair:
        answers = pair.ask_all(
            [
                (p, switching(threshold=threshold, start=starts[i % 2], **RULE))
                for i, p in enumerate(prompts)
            ],
            max_tokens=TOKENS,
        )
        assert set(pair.figures().values()) == {0}
    expected = [replay(models, p, threshold, start=starts[i % 2]) for i, p in enumerate(prompts)]
    assert [agrees(a, e) for a, e in zip(answers, expected, strict=True)] == [True] * 8
    assert sum(answer.switches for answer in answers) > 8
