"""What a KV connector may load for a group; with simulated workers a step takes milliseconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from vllm.v1.request import RequestStatus

from divserve.engine.faults import NOT_LOADED
from tests.engine.test_scheduler import Watched, free_blocks, guided, leftovers, made
from tests.support.kv_store import STORE, configured


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    yield
    STORE.reset()


KINDS = ("sync", "async")
FAILURES = [(False, "blocks"), (True, "blocks"), (True, "request")]
"""Whether loads are asynchronous, and what of them fails."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def served(kind: str, model: Path, policy: str = "recompute", **sizes: Any) -> Watched:
    return made(kind, model, transfer=configured(kv_load_failure_policy=policy), **sizes)


def remember(watched: Watched, prompt: int, *guides: int, text: str = "text") -> None:
    """Runs a pair, whose texts the connector then keeps, and empties the local cache."""
    watched.add("before", prompt + 1, guided(*(n + 1 for n in guides)), tokens=3, text=text)
    watched.run()
    for _ in range(3):
        watched.step()
    assert watched.scheduler.reset_prefix_cache()
    watched.answers.clear()
    STORE.told.clear()
    STORE.loaded.clear()


def settle(watched: Watched) -> None:
    """Steps in which the connector lets go of what has ended."""
    watched.run()
    for _ in range(4):
        watched.step()


LENGTHS = [1, 2, 15, 16, 17, 18, 33, 49, 70, 129]
OFFERS = [
    (waits, short, whole)
    for waits in (False, True)
    for short in (0, 1, 2, 5)
    for whole in (False, True)
    if short or waits
]


@pytest.mark.parametrize(("waits", "short", "whole"), OFFERS)
def test_a_hit_of_any_length(tiny: Path, kind: str, waits: bool, short: int, whole: bool) -> None:
    """A held member is always left a token to compute, or joins with its last one."""
    for prompt in LENGTHS:
        for guide in LENGTHS[::-1] if prompt in (17, 129) else (17, 33):
            STORE.reset()
            watched = served(kind, tiny)
            free = free_blocks(watched)
            remember(watched, prompt, guide)
            STORE.waits, STORE.short, STORE.whole_blocks = waits, short, whole
            watched.add("pair", prompt, guided(guide), text="text")
            settle(watched)
            assert watched.answers == {"pair": 4}, (prompt, guide)
            assert set(leftovers(watched, free).values()) == {0}, (prompt, guide)
            if prompt > 34 and guide > 34 and short > 1:
                assert STORE.loaded.keys() == {"pair", "pair~guide"}


def test_texts_that_fit_a_step_are_loaded_all_the_same(tiny: Path, kind: str) -> None:
    """A group that were admitted as a whole could not wait for a load."""
    watched = served(kind, tiny)
    remember(watched, 30, 20)
    STORE.waits, STORE.whole_blocks = True, True
    watched.add("pair", 30, guided(20), text="text")
    settle(watched)
    assert STORE.loaded == {"pair": 16, "pair~guide": 16}
    assert watched.answers == {"pair": 4}


def test_both_texts_that_are_there_in_full_are_read_in_one_step(tiny: Path, kind: str) -> None:
    """As after a prefill in another instance: nothing is left but the sampling token."""
    watched = served(kind, tiny)
    remember(watched, 70, 55)
    STORE.waits, STORE.short = True, 0
    watched.add("pair", 70, guided(55), text="text", tokens=1)
    settle(watched)
    assert STORE.loaded == {"pair": 70, "pair~guide": 55}
    assert watched.answers == {"pair": 1}


@pytest.mark.parametrize("method", ["one-token guide", "grounding text"])
@pytest.mark.parametrize("waits", [False, True])
def test_nothing_is_loaded_for_these(tiny: Path, kind: str, waits: bool, method: str) -> None:
    """A member that samples in the step of its admission, and a text that must be read in full."""
    order = guided(1) if method == "one-token guide" else guided(grounding=70)
    watched = served(kind, tiny)
    remember(watched, 70, 55)
    STORE.kept += [(list(range(900, 970)), {}), ([200], {})]
    STORE.waits, STORE.short = waits, 0 if waits else 1
    watched.add("group", 75, order, text="text")
    settle(watched)
    assert STORE.loaded == {"group": 71}
    assert watched.answers == {"group": 4}


@pytest.mark.parametrize(("waits", "fails"), FAILURES)
def test_a_failed_load_is_computed(tiny: Path, kind: str, waits: bool, fails: str) -> None:
    """Both rows start over if one of them has run; the connector is not asked forever."""
    watched = served(kind, tiny)
    free = free_blocks(watched)
    remember(watched, 70, 55)
    STORE.waits, STORE.short, STORE.fails = waits, 2, fails
    if fails == "request":
        # vLLM itself asks again.
        STORE.attempts = 2
    watched.add("pair", 70, guided(55), text="text")
    settle(watched)
    assert watched.answers == {"pair": 4}
    assert watched.errors == {}
    assert set(leftovers(watched, free).values()) == {0}


@pytest.mark.parametrize(("waits", "fails"), FAILURES)
def test_a_failed_load_ends_its_group(tiny: Path, kind: str, waits: bool, fails: str) -> None:
    """vLLM's default policy: the client learns why, and nothing is left."""
    watched = served(kind, tiny, "fail")
    free = free_blocks(watched)
    remember(watched, 70, 55)
    STORE.waits, STORE.short, STORE.fails = waits, 2, fails
    watched.add("pair", 70, guided(55), text="text")
    watched.add("plain", 9)
    settle(watched)
    assert watched.errors == {"pair": NOT_LOADED}
    assert watched.answers == {"pair": 0, "plain": 4}
    assert set(leftovers(watched, free).values()) == {0}


def test_a_group_leaves_to_loads_what_they_have_yet_to_take(tiny: Path, kind: str) -> None:
    """Half of each text is loaded; the second pair fits beside what the first one has so far."""
    watched = served(kind, tiny, blocks=17)
    for name in ("first", "second"):
        watched.add(name, 80, guided(80))
    texts = [r.prompt_token_ids[:32] for r in watched.scheduler.requests.values()]
    STORE.reset(waits=True, steps=10, kept=[(list(text), {}) for text in texts])
    for _ in range(5):
        watched.step()
    assert STORE.loaded == {"first": 32, "first~guide": 32}
    settle(watched)
    assert watched.answers == {"first": 4, "second": 4}


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 16, 17, 18, 33, 64, 65, 100, 150]),
        st.lists(st.sampled_from([1, 2, 17, 33, 64, 90]), max_size=2),
        st.sampled_from([0, 0, 0, 40]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
)


# A request that has lost its blocks is in the way of those that have some.
@example(
    requests=[
        (100, [], 0, "a", 2),
        (150, [2], 0, "a", 0),
        (100, [], 40, "c", 1),
        (33, [90, 2], 0, "a", 0),
        (16, [2], 0, "a", 2),
    ],
    sizes=(5, 31, 16),
    offer=(True, 1, True),
    steps=3,
    later=2,
    fails="request",
    policy="recompute",
    line="fcfs",
    kind="sync",
    seed=68,
)
# Blocks are reserved for it.
@example(
    requests=[
        (100, [], 0, "a", 2),
        (150, [90], 0, "a", 0),
        (100, [], 40, "c", 1),
        (33, [90, 2], 0, "a", 0),
        (16, [2], 0, "a", 2),
    ],
    sizes=(5, 31, 16),
    offer=(True, 1, True),
    steps=3,
    later=2,
    fails="request",
    policy="recompute",
    line="fcfs",
    kind="sync",
    seed=68,
)
# Only loaded requests could go on, and none fits.
@example(
    requests=[
        (16, [17, 64], 0, "a", 0),
        (150, [2], 40, "b", 0),
        (16, [], 0, "b", 0),
        (1, [64, 17], 0, "b", 1),
        (65, [], 0, "a", 1),
        (16, [90, 90], 40, "c", 0),
        (100, [], 0, "c", 2),
    ],
    sizes=(4, 31, 16),
    offer=(True, 2, False),
    steps=2,
    later=0,
    fails="blocks",
    policy="recompute",
    line="fcfs",
    kind="async",
    seed=301,
)
# All that runs is one group, and the rest of the memory is loaded.
@example(
    requests=[
        (16, [], 0, "b", 2),
        (150, [], 40, "c", 2),
        (64, [], 40, "a", 2),
        (100, [90, 33], 0, "b", 1),
        (64, [], 0, "b", 1),
        (150, [], 0, "b", 2),
        (2, [90], 40, "c", 1),
        (16, [17, 90], 0, "b", 1),
        (150, [17, 2], 0, "b", 0),
        (64, [17, 2], 0, "b", 1),
        (16, [], 0, "b", 0),
        (33, [2], 0, "c", 1),
        (65, [], 0, "c", 1),
    ],
    sizes=(4, 28, 64),
    offer=(True, 0, False),
    steps=1,
    later=0,
    fails="blocks",
    policy="fail",
    line="fcfs",
    kind="async",
    seed=213,
)
@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    requests=REQUESTS,
    sizes=st.tuples(st.integers(4, 8), st.integers(24, 44), st.sampled_from([16, 64])),
    offer=st.sampled_from(OFFERS),
    steps=st.integers(1, 4),
    later=st.integers(0, 3),
    fails=st.sampled_from(["", "", "blocks", "request"]),
    policy=st.sampled_from(["recompute", "fail"]),
    line=st.sampled_from(["fcfs", "priority"]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
)
def test_storms(
    tiny: Path,
    requests: list[tuple[int, list[int], int, str, int]],
    sizes: tuple[int, int, int],
    offer: tuple[bool, int, bool],
    steps: int,
    later: int,
    fails: str,
    policy: str,
    line: str,
    kind: str,
    seed: int,
) -> None:
    """Little memory, loads that fail, aborts in any state: groups stay whole, nothing is left."""
    rows, blocks, tokens = sizes
    STORE.reset()
    watched = made(
        kind,
        tiny,
        max_rows=rows,
        blocks=blocks,
        max_tokens=tokens,
        policy=line,
        transfer=configured(kv_load_failure_policy=policy),
    )
    rng, free = random.Random(seed), free_blocks(watched)
    added: set[str] = set()
    for turn in range(2):
        if turn:
            STORE.waits, STORE.short, STORE.whole_blocks = offer
            STORE.steps, STORE.later, STORE.fails, STORE.attempts = steps, later, fails, 3
            if rng.random() < 0.7:
                watched.scheduler.reset_prefix_cache()
        for i, (prompt, guides, grounding, text, priority) in enumerate(requests):
            name = f"{turn}-{i}"
            added.add(name)
            order = guided(*guides, grounding=grounding) if guides or grounding else None
            watched.add(
                name, prompt, order, tokens=rng.randrange(1, 30), text=text, priority=priority
            )
            for _ in range(rng.randrange(3)):
                watched.step()
            if rng.random() < 0.15:
                gone = rng.choice(sorted(added))
                watched.scheduler.finish_requests([gone], RequestStatus.FINISHED_ABORTED)
        settle(watched)
        left = leftovers(watched, free)
        assert set(left.values()) == {0}, left
    assert "lock-step" not in " ".join(watched.errors.values())
