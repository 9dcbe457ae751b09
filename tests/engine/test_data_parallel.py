"""Two data-parallel ranks: the right answers from both, and nothing left on either."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from vllm import SamplingParams

from divserve.decoding import METHODS, Stack
from divserve.engine.order import Order
from divserve.errors import InvalidRequest
from divserve.startup.extras import Extras
from tests.engine.cases import mismatches, mixed_cases
from tests.support.data_parallel import PROMPT, SEED, Ranks, data_parallel, spec
from tests.support.engine import Engine, random_prompt
from tests.support.hf import Reference
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]

REQUESTS, LEAVING = 60, 0.3
TOO_LONG = 2000
AMATEURS = {"amateur": "drop:1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("three"), layers=3)


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


@pytest.fixture(scope="module")
def ranks(model: Path) -> Iterator[Ranks]:
    with data_parallel(model, Extras(AMATEURS, look_back=True)) as ranks:
        yield ranks


def test_both_ranks_answer_as_the_reference(ranks: Ranks, reference: Reference) -> None:
    """The second round hits the prefix cache of one rank or the other."""
    cases = mixed_cases(reference, guided=6, plain=4, longest=200, seed=11)

    async def ask_all() -> list[list[int]]:
        asked = (
            ranks.ask(
                case.prompt, spec(case.method, case.guide), max_tokens=case.max_tokens,
                detokenize=False,
            )
            for case in cases
        )  # fmt: skip
        return [answer.tokens for (answer,) in await asyncio.gather(*asked)]

    before = [ranks.sample("request_success_total", r, finished_reason="length") for r in (0, 1)]
    for _ in range(2):
        assert mismatches(cases, ranks.run(ask_all())) == []
    after = [ranks.sample("request_success_total", r, finished_reason="length") for r in (0, 1)]
    assert all(b > a for a, b in zip(before, after, strict=True)), "both have worked"
    record(
        Row(
            "parallel",
            "`--data-parallel-size 2`",
            "6 guided and 4 plain, two rounds, on both ranks; a storm leaves nothing",
            "tiny Llama, float32, V1, CPU",
            "Hugging Face float32, token by token",
        )
    )


def test_choices_come_from_several_ranks_under_one_ticket(
    ranks: Ranks, reference: Reference
) -> None:
    prompt, guide, tokens = list(range(20, 60)), list(range(40, 60)), 12
    expected = reference.greedy(prompt, guide, "cad", tokens)
    # Until then vLLM balances by what the ranks had to do before.
    ranks.run(asyncio.sleep(0.5))
    before = [ranks.sample("generation_tokens_total", rank) for rank in (0, 1)]
    answers = ranks.run(
        ranks.ask(prompt, spec("cad", guide), n=4, temperature=1e-4, max_tokens=tokens,
                  detokenize=False)
    )  # fmt: skip
    after = [ranks.sample("generation_tokens_total", rank) for rank in (0, 1)]
    assert [answer.tokens for answer in answers] == [expected.tokens] * 4
    assert [len(answer.rows) for answer in answers] == [tokens] * 4
    assert [b - a for a, b in zip(before, after, strict=True)] == [2 * tokens] * 2


def test_each_rank_has_what_runs_beside_the_model(ranks: Ranks, model: Path) -> None:
    """As in a single engine: an amateur, and stored states with alarms that end in probes."""
    with closing(Engine(model, amateurs=AMATEURS, look_back=True)) as single:
        for fields in (
            {"method": "contrastive"},
            {"method": "look_back", "threshold": 1000, "k": 4},
        ):
            method = METHODS[str(fields["method"])].model_validate(fields)
            order = Stack([method]).spec(0.0, [None])
            params = SamplingParams(
                temperature=0, seed=SEED, max_tokens=12, ignore_eos=True, detokenize=False,
                extra_args=Order(order).pack(),
            )  # fmt: skip
            (alone,) = single.generate([(PROMPT, params)])
            for rank in (0, 1):
                answer = ranks.run(ranks.ask_rank(rank, order, 12))
                assert answer == list(alone.outputs[0].token_ids), (fields, rank)


def test_nothing_is_left_after_a_storm(ranks: Ranks) -> None:
    """Guided, plain, several choices; some clients leave, some ask for what cannot be."""
    rng = random.Random(5)
    ended = {"answered": 0, "left": 0, "refused": 0}

    async def one() -> None:
        length = TOO_LONG if rng.random() < 0.1 else rng.randrange(1, 200)
        guide = random_prompt(rng, length, TINY_VOCAB) if rng.random() < 0.7 else None
        work = ranks.ask(
            random_prompt(rng, rng.randrange(1, 200), TINY_VOCAB), spec("cad", guide),
            n=rng.choice([1, 1, 2]), temperature=1.0, max_tokens=rng.randrange(1, 200),
            detokenize=False,
        )  # fmt: skip
        leaves = rng.random() < LEAVING
        try:
            await asyncio.wait_for(work, rng.random() if leaves else None)
        except TimeoutError:
            ended["left"] += 1
        except InvalidRequest:
            ended["refused"] += 1
        else:
            ended["answered"] += 1

    async def storm() -> None:
        await asyncio.gather(*(one() for _ in range(REQUESTS)))

    ranks.run(asyncio.wait_for(storm(), 200))
    assert all(ended.values()), ended
    left = ranks.figures()
    assert set(left.values()) == {0}, left
