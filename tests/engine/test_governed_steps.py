"""The scheduler verifies the drafts that its governor chooses, in simulated time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import RequestStatus

from divserve.decoding import STATISTICS
from divserve.engine.reported import Guidance, set_guidance
from divserve.engine.scheduler.governor import Governor
from tests.engine.test_scheduler import SCHEDULERS, Watched, free_blocks, guided, leftovers
from tests.support.bare_scheduler import BLOCK, TOKEN
from tests.support.engine import counted

MOST = 4
WRONG = TOKEN + 1

KINDS = ("sync", "async")
"""Of `SCHEDULERS`; with pipelines there are no drafts."""


class Drafting(Watched):
    """Every row is given drafts of which the first are right.

    Args:
        kind: of `SCHEDULERS`.
        model: a folder with a configuration.
        right: how many.
        base: seconds of a step.
        each: seconds of each of its tokens.
        sizes: of `BareScheduler`.
    """

    def __init__(
        self, kind: str, model: Path, right: int, base: float, each: float, **sizes: Any
    ) -> None:
        cls, ahead = SCHEDULERS[kind]
        super().__init__(cls, model, drafts=MOST, **ahead, **sizes)
        self._right, self._base, self._each, self.now = right, base, each, 1.0
        if self.scheduler.drafts.governor is not None:
            governor = Governor(clock=lambda: self.now)
            self.scheduler.drafts.governor = governor
        self.verified: list[dict[str, int]] = []
        """Drafts of each row, by step."""

    def update(self, output: Any, sampling: list[str]) -> None:
        drafts = {name: len(d) for name, d in output.scheduled_spec_decode_tokens.items()}
        for group in self.scheduler.groups:
            assert len({drafts.get(m.request_id, 0) for m in group.members}) == 1, drafts
        self.verified.append(drafts)
        self.now += self._base + self._each * output.total_num_scheduled_tokens
        super().update(output, sampling)
        if self._ahead == 1:
            proposed = [TOKEN] * self._right + [WRONG] * (MOST - self._right)
            rows = [name for name in sampling if name in self.scheduler.requests]
            tokens = DraftTokenIds(rows, [list(proposed) for _ in rows])
            self.scheduler.update_draft_token_ids(tokens)

    def played(self, output: Any, sampling: list[str]) -> Any:
        made = super().played(output, sampling)
        drafts = output.scheduled_spec_decode_tokens
        statistics = {}
        for name in sampling:
            tokens = 1 + min(self._right, len(drafts.get(name, ())))
            made.sampled_token_ids[made.req_id_to_index[name]] = [TOKEN] * tokens
            statistics[name] = [(0.5,) * len(STATISTICS)] * tokens
        set_guidance(made, Guidance(statistics, 1e-4))
        return made

    def mean(self, name: str, start: int, end: int) -> float:
        """Drafts of a row in each of these steps."""
        return sum(drafts.get(name, 0) for drafts in self.verified[start:end]) / (end - start)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def drafting(kind: str, model: Path, right: int, base: float, each: float, **sizes: Any) -> Any:
    scheduler = Drafting(kind, model, right, base, each, blocks=128, **sizes)
    scheduler.add("plain", 5, tokens=200)
    scheduler.add("one", 6, guided(4), tokens=200)
    scheduler.add("two", 6, guided(4, 1), tokens=200)
    return scheduler


def test_free_drafts_are_verified(kind: str, tiny: Path) -> None:
    scheduler = drafting(kind, tiny, right=MOST, base=0.01, each=0)
    scheduler.run()
    assert scheduler.answers == {"plain": 200, "one": 200, "two": 200}
    assert scheduler.errors == {}
    assert scheduler.steps < 70
    assert min(scheduler.mean(name, 15, 35) for name in ("plain", "one", "two")) > 3


@pytest.mark.parametrize("right", [0, MOST])
def test_nothing_is_verified_where_a_token_costs_a_step(kind: str, tiny: Path, right: int) -> None:
    """Guided requests would cost other requests what they do not save."""
    scheduler = drafting(kind, tiny, right, base=0, each=0.01)
    scheduler.run()
    assert scheduler.answers == {"plain": 200, "one": 200, "two": 200}
    needed = (26 + 6 * 200) * 0.01
    assert scheduler.now - 1 < 1.05 * needed


def test_requests_with_few_rows_first(kind: str, tiny: Path) -> None:
    scheduler = drafting(kind, tiny, right=MOST, base=0.002, each=0.01)
    scheduler.run()
    assert scheduler.mean("plain", 10, 35) > 2 > 4 * scheduler.mean("two", 10, 35)


def test_steps_without_groups_are_governed(kind: str, tiny: Path) -> None:
    scheduler = Drafting(kind, tiny, right=0, base=0, each=0.01)
    scheduler.add("a", 5, tokens=300)
    scheduler.add("b", 5, tokens=300)
    scheduler.run()
    assert scheduler.now - 1 < 1.05 * (10 + 2 * 300) * 0.01
    scheduler = Drafting(kind, tiny, right=MOST, base=0.01, each=0)
    scheduler.add("a", 5, tokens=300)
    scheduler.run()
    assert scheduler.steps < 90


@pytest.mark.parametrize("right", [0, 1, MOST])
def test_windows_are_kept_for_rejected_drafts(kind: str, tiny: Path, right: int) -> None:
    """`BareScheduler` asserts it; a window that ends within the drafts of a step, and others."""
    scheduler = drafting(
        kind, tiny, right, base=0.01, each=0, governed=False, window=2 * BLOCK, max_tokens=128
    )
    preempted = counted(scheduler.scheduler, "_preempt_request")
    scheduler.run()
    assert scheduler.answers == {"plain": 200, "one": 200, "two": 200}
    assert scheduler.errors == {}
    assert preempted == []


@pytest.mark.parametrize("right", [0, MOST])
@pytest.mark.parametrize("window", [0, pytest.param(2 * BLOCK, marks=pytest.mark.long)])
def test_aborts_at_every_step(kind: str, tiny: Path, right: int, window: int) -> None:
    """Of each request in turn, in a cache that does not hold all of them."""
    begun: set[int] = set()
    # A row with a window has as many blocks in its second KV cache group as in the first.
    blocks = 28 if window else 14
    for name in ("plain", "one", "two"):
        for gone in range(1000):
            scheduler = Drafting(
                kind, tiny, right, 0.01, 0, governed=False, blocks=blocks, window=window
            )
            free = free_blocks(scheduler)
            scheduler.add("plain", 20, tokens=16)
            scheduler.add("one", 40, guided(1), tokens=16)
            scheduler.add("two", 18, guided(15, 16), tokens=16)
            for _ in range(gone):
                scheduler.step()
            if name not in scheduler.scheduler.requests:
                break
            scheduler.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            scheduler.run()
            begun.add(scheduler.answers.pop(name, 0))
            assert scheduler.errors == {}
            assert scheduler.answers == dict.fromkeys({"plain", "one", "two"} - {name}, 16)
            assert set(leftovers(scheduler, free).values()) == {0}
    assert len(begun) > (3 if right == MOST else 4)


def test_without_the_governor_all_are_verified(kind: str, tiny: Path) -> None:
    scheduler = drafting(kind, tiny, right=1, base=0, each=0.01, governed=False)
    assert scheduler.scheduler.drafts.governor is None
    scheduler.run()
    middle = scheduler.verified[20:60]
    assert [d[name] for d in middle for name in ("plain", "one", "two")] == [MOST] * 3 * len(middle)


def test_requests_with_a_seed_get_no_drafts(kind: str, tiny: Path) -> None:
    """Their random numbers are counted by token, so their drafts must not depend on time."""
    scheduler = Drafting(kind, tiny, right=MOST, base=0.01, each=0)
    scheduler.add("greedy", 5, tokens=60)
    scheduler.add("plain", 5, tokens=60, seed=3)
    scheduler.add("guided", 5, guided(4), tokens=60, seed=3)
    scheduler.run()
    assert {name for drafts in scheduler.verified for name in drafts} == {"greedy"}


def test_nothing_to_decide_without_drafts(tiny: Path) -> None:
    scheduler = Drafting("sync", tiny, right=0, base=0.01, each=0)
    calls = counted(scheduler.scheduler.drafts.governor, "choose")
    scheduler.add("a", 50, tokens=1)
    scheduler.add("b", 50, guided(4), tokens=1)
    scheduler.run()
    assert calls == []


@given(
    kind=st.sampled_from(KINDS),
    requests=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=2), st.integers(1, 30)),
        min_size=1,
        max_size=5,
    ),
    right=st.integers(0, MOST),
    each=st.floats(0, 0.02),
    gone=st.integers(0, 30),
)
@settings(max_examples=15)
def test_groups_keep_together(
    tiny: Path, kind: str, requests: list[Any], right: int, each: float, gone: int
) -> None:
    """`Drafting` compares the drafts of each group's rows; one request is aborted."""
    scheduler = Drafting(kind, tiny, right, 0.01, each, blocks=24)
    free = scheduler.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    for i, (prompt, guides, tokens) in enumerate(requests):
        scheduler.add(f"r{i}", prompt, guided(*guides) if guides else None, tokens=tokens)
    for _ in range(gone):
        scheduler.step()
    scheduler.scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED)
    scheduler.run()
    assert scheduler.errors == {}
    expected = {f"r{i}": tokens for i, (_, _, tokens) in enumerate(requests) if i}
    answers = dict(scheduler.answers)
    answers.pop("r0", None)
    assert answers == expected
    assert set(leftovers(scheduler, free).values()) == {0}
