"""Requests that hold memory while others must be admitted: half a group, and alarms."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.interface import PauseState

from tests.support.engine import Engine, counted, order, random_prompt
from tests.support.models import TINY_VOCAB

PROMPT = random_prompt(random.Random(7), 90, TINY_VOCAB)
"""More than the budget of a step."""
GUIDES = {"one token": PROMPT[-1:], "as long as the prompt": PROMPT[::-1]}
TOKENS = 8
STEPS = 200
"""More than any of these tests needs."""


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    options: Any = {"max_model_len": 256, "blocks": 14, "asynchronous": request.param}
    engine = Engine(tiny, look_back=True, **options)
    yield engine
    engine.close()


def params(method: str, guide: list[int] | None, **fields: Any) -> SamplingParams:
    return SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        extra_args=order(method, guide, **fields),
    )


def add(engine: Engine, name: str, prompt: list[int], sampling: SamplingParams) -> None:
    engine.core.add_request(name, {"prompt_token_ids": prompt}, sampling)


def finish(engine: Engine) -> dict[str, list[int]]:
    """Runs steps until nothing is left; returns the tokens of each request."""
    tokens: dict[str, list[int]] = {}
    for _ in range(STEPS):
        if not engine.core.has_unfinished_requests():
            return tokens
        for output in engine.core.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    raise AssertionError(f"{len(engine.scheduler.running)} rows still run")


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_a_pause_that_waits_for_what_runs_ends(engine: Engine, guide: list[int]) -> None:
    """Nothing more is admitted, so the group cannot continue: it starts again after the pause."""
    (alone,) = engine.generate([(PROMPT, params("cad", guide))])
    engine.core.reset_prefix_cache()
    add(engine, "paused", PROMPT, params("cad", guide))
    scheduler = engine.scheduler
    engine.core.step()
    assert len(scheduler.running) == 1, "none of the group is admitted, or all of it"
    scheduler.set_pause_state(PauseState.PAUSED_NEW)
    try:
        for _ in range(STEPS):
            if not scheduler.has_unfinished_requests():
                break
            engine.core.step()
        assert not scheduler.has_unfinished_requests()
        assert scheduler.running == []
    finally:
        scheduler.set_pause_state(PauseState.UNPAUSED)
    assert finish(engine)["paused"] == list(alone.outputs[0].token_ids)
    assert set(engine.leftovers().values()) == {0}


def test_an_alarm_and_a_group_that_want_the_same_blocks(engine: Engine) -> None:
    """One makes room for the other: neither waits forever, and no pair loses its guide.

    A request that waits for its probes holds blocks without running; half a group runs but is held.
    """
    pair = params("cad", GUIDES["as long as the prompt"])
    (alone,) = engine.generate([(PROMPT, pair)])
    looker = params("look_back", None, threshold=1000, k=5)
    pool = engine.scheduler.kv_cache_manager.block_pool
    given_up = counted(engine.scheduler.alarms, "give_up_newest")
    sizes = itertools.product((3, 4, 5), (0, 1, 5), (30, 31, 61))
    for reserved, steps, length in sizes:
        taken = pool.get_new_blocks(reserved)
        add(engine, "looker", PROMPT[:length], looker)
        for _ in range(steps):
            engine.core.step()
        add(engine, "pair", PROMPT, pair)
        tokens = finish(engine)
        assert tokens["pair"] == list(alone.outputs[0].token_ids)
        assert len(tokens["looker"]) == TOKENS
        pool.free_blocks(taken)
    assert given_up
    assert set(engine.leftovers().values()) == {0}


def test_half_of_a_group_goes_back_for_an_alarm(engine: Engine) -> None:
    """The other half does not fit until the alarm ends, which needs a block for its probe."""
    prompt, scheduler = PROMPT[:64], engine.scheduler
    pair = params("cad", prompt[::-1])
    (alone,) = engine.generate([(prompt, pair)])
    engine.core.reset_prefix_cache()
    pool = scheduler.kv_cache_manager.block_pool
    add(engine, "looker", PROMPT[-20:], params("look_back", None, threshold=1000, k=1))
    engine.core.step()
    add(engine, "pair", prompt, pair)
    while not any(request.request_id.startswith("pair") for request in scheduler.running):
        engine.core.step()
    (half,) = (r for r in scheduler.running if r.request_id.startswith("pair"))
    taken = pool.get_new_blocks(pool.get_num_free_blocks())
    ended: dict[str, int] = {}
    for _ in range(STEPS):
        if "looker" in ended:
            break
        for output in engine.core.step():
            ended |= (
                {output.request_id: len(output.outputs[0].token_ids)} if output.finished else {}
            )
    assert ended == {"looker": TOKENS}
    assert half.num_preemptions > 0
    pool.free_blocks(taken)
    assert finish(engine)["pair"] == list(alone.outputs[0].token_ids)
    assert set(engine.leftovers().values()) == {0}


@pytest.mark.parametrize("free", [1, 2])
def test_pairs_of_single_tokens_that_do_not_fit_yet(engine: Engine, free: int) -> None:
    """They would be admitted in one step, for which there are too few blocks while another runs."""
    plain = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)
    pair = params("cad", [8])
    (alone,) = engine.generate([([7], pair)])
    pool = engine.scheduler.kv_cache_manager.block_pool
    add(engine, "plain", PROMPT[:9], plain)
    engine.core.step()
    taken = pool.get_new_blocks(pool.get_num_free_blocks() - free)
    for name in ("one", "two"):
        add(engine, name, [7], pair)
    for _ in range(5):
        engine.core.step()
    pool.free_blocks(taken)
    tokens = finish(engine)
    assert tokens["one"] == tokens["two"] == list(alone.outputs[0].token_ids)
    assert len(tokens["plain"]) == 20
    assert set(engine.leftovers().values()) == {0}


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("lookers", [1, 2])
def test_alarms_in_a_cache_that_they_fill(engine: Engine, lookers: int, k: int) -> None:
    """Every token is an alarm; its probes find one block, or none until another request gives
    way."""
    pool = engine.scheduler.kv_cache_manager.block_pool
    looker = params("look_back", None, threshold=1000, k=k)
    prompts = [PROMPT[:length] for length in (61, 59)[:lookers]]
    for free in range(3 * lookers + 1, 3 * lookers + 4):
        taken = pool.get_new_blocks(pool.get_num_free_blocks() - free)
        for number, prompt in enumerate(prompts):
            add(engine, str(number), prompt, looker)
        tokens = finish(engine)
        pool.free_blocks(taken)
        assert [len(ids) for ids in tokens.values()] == [TOKENS] * lookers
        engine.core.reset_prefix_cache()
    assert set(engine.leftovers().values()) == {0}


@pytest.mark.parametrize("length", [40, len(PROMPT)])
def test_a_reset_of_the_cache_while_a_request_waits_with_its_blocks(
    engine: Engine, length: int
) -> None:
    """The request begins again, in one step or two, and finds the same alarm."""
    # A single candidate, so that nothing is drawn.
    looker = params("look_back", None, threshold=1000, k=1)
    (alone,) = engine.generate([(PROMPT[:length], looker)])
    add(engine, "looker", PROMPT[:length], looker)
    scheduler = engine.scheduler
    while not scheduler.alarms:
        engine.core.step()
    assert scheduler.reset_prefix_cache(reset_running_requests=True)
    assert finish(engine)["looker"] == list(alone.outputs[0].token_ids)
    assert set(engine.leftovers().values()) == {0}


def test_alarms_leave_the_line_open(tiny: Path) -> None:
    """Under the priority policy too, where requests that must be admitted have their own queue."""
    engine = Engine(tiny, look_back=True, max_model_len=256, scheduling_policy="priority")
    plain = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    add(engine, "looker", PROMPT[:40], params("look_back", None, threshold=1000, k=5))
    while not engine.scheduler.alarms:
        engine.core.step()
    engine.core.add_request("urgent", {"prompt_token_ids": PROMPT[:9]}, plain, priority=-1)
    engine.core.step()
    assert {r.request_id.split("-")[0] for r in engine.scheduler.running} == {"looker", "urgent"}
    assert {name: len(ids) for name, ids in finish(engine).items()} == {
        "looker": TOKENS,
        "urgent": TOKENS,
    }
    assert set(engine.leftovers().values()) == {0}
    engine.close()
