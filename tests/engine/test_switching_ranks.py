"""Entropy-adaptive switching between a large model on two ranks and a small one on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine import test_switching
from tests.engine.test_switching import RULE, TOKENS, agrees, replay
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only
from tests.support.two_engines import switching, two_engines

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]

large, small, prompts = test_switching.large, test_switching.small, test_switching.prompts
models, threshold = test_switching.models, test_switching.threshold


def test_answers_equal_the_replay(
    large: Path, small: Path, models: Any, prompts: list[list[int]], threshold: float
) -> None:
    """Neither has the other's tensor parallelism: hidden sizes and heads of a small model may not
    be divisible by it."""
    starts = ["small", "large"]
    with two_engines(
        large, small, served_model_name=["tiny"], tensor_parallel_size=2, max_num_seqs=8
    ) as pair:
        assert pair.client.small.inner.vllm_config.parallel_config.tensor_parallel_size == 1
        answers = pair.ask_all(
            [
                (prompt, switching(threshold=threshold, start=starts[i % 2], **RULE))
                for i, prompt in enumerate(prompts)
            ],
            max_tokens=TOKENS,
        )
        assert set(pair.figures().values()) == {0}
    expected = [replay(models, p, threshold, start=starts[i % 2]) for i, p in enumerate(prompts)]
    assert [agrees(a, e) for a, e in zip(answers, expected, strict=True)] == [True] * len(prompts)
    assert sum(answer.switches for answer in answers) > 2 * len(prompts)
    record(
        Row(
            "parallel",
            "`--tensor-parallel-size 2` with `--small` on one rank",
            "answers that move between both models, with their entropies",
            "tiny Llamas, float32, V1, CPU",
            "Hugging Face float32, token by token",
        )
    )
