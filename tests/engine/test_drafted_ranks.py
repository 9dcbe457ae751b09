"""Two ranks that speculate, data-parallel or tensor-parallel: the right answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divserve.engine.scheduler.governor import OPTION
from tests.engine.cases import METHOD_NAMES, Case, mismatches, run
from tests.engine.test_speculation import Watched
from tests.engine.test_switching_drafts import LOOKUP
from tests.support.data_parallel import Ranks, data_parallel, spec
from tests.support.engine import random_prompt
from tests.support.hf import Reference
from tests.support.models import TINY_VOCAB
from tests.support.platform import cpu_only

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]

LETTER, STOP, TOKENS = "a", 7, 24


@pytest.fixture(scope="module")
def ranks(tiny_with_tokenizer: Path) -> Iterator[Ranks]:
    options: dict[str, Any] = {
        "speculative_config": LOOKUP, "additional_config": {OPTION: False},
        "skip_tokenizer_init": False, "max_model_len": 512,
    }  # fmt: skip
    with data_parallel(tiny_with_tokenizer, **options) as ranks:
        yield ranks


def cases_of(reference: Reference) -> list[Case]:
    """Guided and plain requests on phrases that repeat, so that lookup finds drafts."""
    rng = random.Random(3)
    found = []
    for method in (*METHOD_NAMES, "cad", "", "", ""):
        prompt = (random_prompt(rng, rng.choice([3, 5, 8]), TINY_VOCAB) * 20)[:60]
        guide = prompt[-rng.choice([1, 20, 33]) :] if method else None
        answer = reference.greedy(prompt, guide, method, TOKENS)
        found.append(Case(prompt, guide, method, TOKENS, answer))
    return found


def test_data_parallel_ranks_answer_as_the_reference(
    ranks: Ranks, tiny_with_tokenizer: Path
) -> None:
    cases = cases_of(Reference(tiny_with_tokenizer))

    async def ask_all() -> list[Any]:
        asked = (
            ranks.ask(c.prompt, spec(c.method, c.guide), max_tokens=TOKENS, detokenize=False)
            for c in cases
        )
        return [answer for (answer,) in await asyncio.gather(*asked)]

    for _ in range(2):
        answers = ranks.run(ask_all())
        assert mismatches(cases, [answer.tokens for answer in answers]) == []
        for case, answer in zip(cases, answers, strict=True):
            assert len(answer.rows) == (TOKENS if case.method else 0)
    for rank in (0, 1):
        assert ranks.sample("spec_decode_num_draft_tokens_total", rank) > 0
    assert set(ranks.figures().values()) == {0}


def test_tensor_parallel_ranks_answer_as_the_reference(tiny: Path) -> None:
    cases = cases_of(Reference(tiny))
    watched = Watched(tiny, [], tensor_parallel_size=2, speculative_config=LOOKUP)
    for _ in range(2):
        assert mismatches(cases, run(watched.engine, cases)) == []
        assert set(watched.engine.leftovers().values()) == {0}
    assert watched.uneven == []
    assert watched.accepted > 0 < watched.rejected
    watched.engine.close()


@pytest.mark.parametrize("method", ["", "cad"])
def test_a_stop_string_within_accepted_drafts(ranks: Ranks, method: str) -> None:
    """Only one token is allowed, so that all drafts are accepted; as many rows as tokens."""
    encode = ranks.client.tokenizer.encode
    (letter,) = encode(LETTER)
    prompt = encode("The capital of Atlantis is Zorb.")

    def accepted() -> float:
        return sum(ranks.sample("spec_decode_num_accepted_tokens_total", rank) for rank in (0, 1))

    async def both() -> list[Any]:
        asked = (
            ranks.ask(
                prompt, spec(method, prompt[3:] if method else None), max_tokens=TOKENS,
                allowed_token_ids=[letter], stop=[LETTER * STOP], include_stop_str_in_output=True,
            )
            for _ in range(2)
        )  # fmt: skip
        return [answer for (answer,) in await asyncio.gather(*asked)]

    before = accepted()
    for answer in ranks.run(both()):
        assert (answer.text, answer.finish_reason) == (LETTER * STOP, "stop")
        assert answer.tokens == [letter] * STOP
        assert len(answer.rows) == (STOP if method else 0)
    assert set(ranks.figures().values()) == {0}
    assert accepted() - before >= 2
