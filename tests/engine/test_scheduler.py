"""The scheduler with simulated workers: no part of a group is ever sampled without the rest.

A step takes milliseconds here, so mixes of requests can be drawn at random. How engines run these
steps is tested with models (`test_token_identity`, `test_partly_admitted` …).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.request import RequestStatus

from divserve.decoding import Look, LookRow, LookState, Spec
from divserve.engine.order import Order
from divserve.engine.reported import guidance_of, set_guidance
from divserve.engine.scheduler.group import Group
from divserve.engine.scheduler.scheduler import AsyncLockstepScheduler, LockstepScheduler
from divserve_contract import Program
from tests.support.bare_scheduler import BareScheduler
from tests.support.engine import known_of

SCHEDULERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sync": (LockstepScheduler, {}),
    "async": (AsyncLockstepScheduler, {"ahead": 2}),
    "pipeline, sync": (LockstepScheduler, {"stages": 2, "ahead": 2}),
    # vLLM schedules a request's next token as many steps later as there are stages.
    "pipeline, async, V2": (AsyncLockstepScheduler, {"stages": 3, "ahead": 4, "v2": True}),
}
CONTRAST = Program(alpha=0.5)


@pytest.fixture(params=SCHEDULERS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def made(kind: str, model: Path, **sizes: Any) -> Watched:
    cls, steps = SCHEDULERS[kind]
    return Watched(cls, model, **steps | sizes)


class Watched(BareScheduler):
    """Asserts in every step that groups sample as a whole or not at all."""

    def update(self, output: Any, sampling: list[str]) -> None:
        sampled = set(sampling)
        for group in self.scheduler.groups:
            rows = [m.request_id for m in group.members if m is not group.grounding]
            here = [name for name in rows if name in sampled]
            assert here in ([], rows), f"{here} of {rows}"
            assert group.grounding is None or not here, "sampled before its text was read"
        super().update(output, sampling)


def guided(*guides: int, grounding: int = 0) -> Order:
    """An order with guides of so many tokens, no two with a common prefix."""
    texts = [[200 * (i + 1) + j for j in range(n)] for i, n in enumerate(guides)]
    return Order(Spec(CONTRAST, texts, grounding=list(range(900, 900 + grounding))))


def leftovers(watched: BareScheduler, free: int) -> dict[str, int]:
    """What must be 0 when nothing runs."""
    scheduler = watched.scheduler
    free -= scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    lines = len(scheduler.waiting) + len(scheduler.kv_holding_waiting) + len(scheduler.running)
    return {**known_of(scheduler), "blocks": free, "lines": lines}


def free_blocks(watched: BareScheduler) -> int:
    return int(watched.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def test_a_group_that_fits_samples_in_its_first_step(tiny: Path, kind: str) -> None:
    """It is as fast as a plain request."""
    steps = {}
    for name, order in {"plain": None, "pair": guided(7), "two guides": guided(7, 9)}.items():
        watched = made(kind, tiny)
        watched.add("one", 12, order)
        watched.run()
        assert watched.answers == {"one": 4}
        steps[name] = watched.steps
    assert steps["pair"] == steps["two guides"] == steps["plain"]


@pytest.mark.parametrize("guide", [1, 7, 300], ids=["one token", "short", "longer than a step"])
@pytest.mark.parametrize("prompt", [1, 9, 300], ids=["one token", "short", "longer than a step"])
def test_groups_of_any_lengths(tiny: Path, kind: str, prompt: int, guide: int) -> None:
    watched = made(kind, tiny)
    free = free_blocks(watched)
    watched.add("pair", prompt, guided(guide))
    watched.add("plain", 5)
    watched.run()
    assert watched.answers == {"pair": 4, "plain": 4}
    assert set(leftovers(watched, free).values()) == {0}


def test_nobody_comes_between_the_members_of_a_whole_group(tiny: Path, kind: str) -> None:
    """A long prompt in front of it takes the tokens of the step: then it is held as usual."""
    watched = made(kind, tiny, max_tokens=64)
    watched.add("long", 60)
    watched.add("pair", 4, guided(4))
    watched.step()
    assert "long" in {request.request_id for request in watched.scheduler.running}
    assert "pair" not in watched.scheduler.groups.ready
    watched.run()
    assert watched.answers == {"long": 4, "pair": 4}


def test_a_group_of_single_tokens_comes_in_when_it_is_first(tiny: Path, kind: str) -> None:
    """None of its members can be held, so it is admitted as a whole or not at all."""
    watched = made(kind, tiny, max_rows=3, blocks=12)
    for i in range(4):
        watched.add(f"pair{i}", 1, guided(1))
        watched.add(f"plain{i}", 20)
    watched.run()
    assert watched.answers == {f"{kind}{i}": 4 for kind in ("pair", "plain") for i in range(4)}


def test_who_waits_for_rows_stops_the_line(tiny: Path, kind: str) -> None:
    """Plain requests behind a group that does not fit do not overtake it forever."""
    watched = made(kind, tiny, max_rows=3)
    watched.add("first", 8, guided(8), tokens=30)
    watched.add("second", 8, guided(8))
    watched.add("plain", 8)
    for _ in range(3):
        watched.step()
    assert {r.request_id for r in watched.scheduler.waiting} >= {"second", "second~guide", "plain"}
    watched.run()
    assert watched.answers == {"first": 30, "second": 4, "plain": 4}


def test_an_urgent_group_is_admitted_as_a_whole_under_the_priority_policy(
    tiny: Path, kind: str
) -> None:
    watched = made(kind, tiny, policy="priority")
    watched.add("calm", 8, guided(8), priority=1)
    watched.add("urgent", 8, guided(8), priority=0)
    watched.step()
    assert {r.request_id for r in watched.scheduler.running} == {"urgent", "urgent~guide"}
    watched.run()
    assert watched.answers == {"calm": 4, "urgent": 4}


def test_a_text_is_read_before_the_first_token(tiny: Path, kind: str) -> None:
    watched = made(kind, tiny)
    free = free_blocks(watched)
    watched.add("text", 9, guided(grounding=30))
    watched.add("text and guide", 9, guided(5, grounding=90))
    watched.run()
    assert watched.answers == {"text": 4, "text and guide": 4}
    assert set(leftovers(watched, free).values()) == {0}


class Unlucky(Watched):
    """The first token of every group is taken back; the log-probs of its prompt came with it."""

    def __init__(self, *args: Any, fault: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fault, self.steps_with_tokens = fault, 0

    def played(self, output: Any, sampling: list[str]) -> Any:
        made = super().played(output, sampling)
        if "looks" not in sampling:
            return made
        guidance, self.steps_with_tokens = guidance_of(made), self.steps_with_tokens + 1
        (statistics,) = guidance.statistics["looks"]
        first, state = self.steps_with_tokens == 1, LookState.CLEAR
        if first:
            made.prompt_logprobs_dict["looks"] = ("log-probs of the prompt",)
            made.prompt_token_id_logprobs_dict["looks"] = ("of chosen ids",)
            state = LookState.ALARM if self.fault == "alarm" else state
        elif self.fault == "alarm" and self.steps_with_tokens == 2:
            state = LookState.CHOSEN
        look = LookRow(
            0.1, 1, state, (5, 6) if state else (), (0.1, 0.2) if state == LookState.CHOSEN else ()
        )
        found = {**guidance.statistics, "looks": [(*statistics, *look.flat())]}
        if first and self.fault == "lost":
            del found["looks"]
        broken = frozenset({"looks"} if first and self.fault == "not numbers" else ())
        set_guidance(made, replace(guidance, statistics=found, broken=broken))
        return made


@pytest.mark.parametrize("fault", ["lost", "not numbers", "alarm"])
def test_a_token_taken_back_came_with_the_log_probs_of_its_prompt(
    tiny: Path, kind: str, fault: str
) -> None:
    """vLLM asserts that these only come with a token. They go out with the next one, if any."""
    cls, steps = SCHEDULERS[kind]
    watched = Unlucky(cls, tiny, **steps, fault=fault)
    free = free_blocks(watched)
    look = Look(1.0, 2, 0, "prefix+generated", True)
    watched.add("looks", 9, Order(Spec(Program(form=0.0), look=look)))
    watched.add("plain", 9)
    watched.run()
    outputs = [one for one in watched.outputs if one.request_id == "looks"]
    with_prompt = [one for one in outputs if one.new_prompt_logprobs_tensors is not None]
    if fault == "alarm":
        assert with_prompt == [one for one in outputs if one.new_token_ids][:1]
        assert with_prompt[0].prompt_token_id_logprobs is not None
        assert watched.answers == {"looks": 4, "plain": 4}
    else:
        assert not with_prompt
        assert watched.answers == {"looks": 0, "plain": 4}
        assert watched.errors["looks"]
    assert set(leftovers(watched, free).values()) == {0}


@pytest.mark.parametrize("length", [48, 49, 50, 97])
def test_a_window_is_whole_after_a_hit(tiny: Path, kind: str, length: int) -> None:
    """49 and 97 are 1 modulo the block size: a whole hit would leave only the held token."""
    watched = made(kind, tiny, window=24)
    for i in range(3):
        order = Order(Spec(CONTRAST, [list(range(500, 500 + length))]))
        watched.add(f"pair{i}", length, order, text="the same")
        watched.run()
    assert watched.answers == {f"pair{i}": 4 for i in range(3)}


@pytest.mark.parametrize("length", [16, 17, 33, 48, 50])
def test_a_row_reads_its_own_state(tiny: Path, kind: str, length: int) -> None:
    """`BareScheduler` asserts it. vLLM cuts prompts at blocks, to cache the state there, so none
    that is longer than a block is read in the step in which its group samples."""
    watched = made(kind, tiny, recurrent="align")
    for i in range(3):
        order = Order(Spec(CONTRAST, [list(range(500, 520))]))
        watched.add(f"pair{i}", length, order, text="the same")
        watched.add(f"short guide{i}", length, guided(1), text="the same")
        watched.run()
    names = [f"{name}{i}" for name in ("pair", "short guide") for i in range(3)]
    assert watched.answers == dict.fromkeys(names, 4)


@pytest.mark.parametrize("kinds", [{"window": 32}, {"recurrent": "align"}, {"recurrent": "none"}])
def test_blocks_that_rows_give_back_count_for_nobody(
    tiny: Path, kind: str, kinds: dict[str, Any]
) -> None:
    """The answers of a pair are as long as those of its rows alone, in the same memory."""
    plain = made(kind, tiny, **kinds, blocks=100, max_tokens=32)
    for i in range(2):
        plain.add(str(i), 500, tokens=60)
    plain.run()
    pair = made(kind, tiny, **kinds, blocks=100, max_tokens=32)
    pair.add("pair", 500, guided(490), tokens=60)
    pair.run()
    assert set(plain.answers.values()) == set(pair.answers.values()) == {60}


def test_what_waits_costs_a_step_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what runs or changes its state is looked at."""
    watched = made("sync", tiny, max_rows=2)
    watched.add("pair", 8, guided(8), tokens=20)
    for _ in range(3):
        watched.step()
    for i in range(50):
        watched.add(f"queued{i}", 8, guided(8))
    seen: list[str] = []
    for name in ("running", "ready", "lacks_prefill", "joinable", "waits_for_others"):
        asked = getattr(Group, name)

        def asking(group: Group, *args: Any, _asked: Any = asked, **kwargs: Any) -> Any:
            seen.append(group.name)
            return _asked(group, *args, **kwargs)

        monkeypatch.setattr(Group, name, asking)
    watched.step()
    assert [name for name in seen if name != "pair"] == []


@pytest.mark.parametrize("adaptive", [False, True])
def test_prompts_above_the_threshold_are_read_in_chunks(
    tiny: Path, kind: str, adaptive: bool
) -> None:
    """``--long-prefill-token-threshold``: such a group is held, a short one still fits a step."""
    watched = made(kind, tiny, longest=16, adaptive=adaptive)
    watched.add("long", 40, guided(12))
    watched.add("short", 9, guided(16))
    watched.step()
    ready = set(watched.scheduler.groups.ready)
    assert "long" not in ready
    watched.run()
    assert watched.answers == {"long": 4, "short": 4}
    alone = made(kind, tiny, longest=16, adaptive=adaptive)
    alone.add("short", 9, guided(16))
    alone.step()
    assert set(alone.scheduler.groups.ready) == {"short"}


@pytest.mark.parametrize("lengths", [(100, 1), (1, 100), (9, 9)])
def test_a_step_that_leaves_prefills_to_others(
    tiny: Path, kind: str, lengths: tuple[int, int]
) -> None:
    """A row of one token is no prefill to vLLM: it must not sample while the others are put off."""
    cls, steps = SCHEDULERS[kind]
    watched = Unlucky(cls, tiny, **steps, interval=4, fault="alarm")
    free = free_blocks(watched)
    prompt, guide = lengths
    watched.add("plain", 9, tokens=40)
    watched.step()
    watched.add("pair", prompt, guided(guide))
    looks = Order(Spec(Program(form=0.0), look=Look(1.0, 2, 0, "prefix+generated", True)))
    watched.add("looks", 9, looks)
    watched.run()
    assert watched.answers == {"plain": 40, "pair": 4, "looks": 4}
    assert set(leftovers(watched, free).values()) == {0}


def test_rows_that_a_pipeline_skips_leave_their_tokens_to_others(tiny: Path) -> None:
    """The next token of a request waits for the other stages: a longer chunk then needs more blocks
    than if the request took part. vLLM's own loop would preempt a member without its group."""
    watched = made(
        "pipeline, async, V2", tiny, stages=2, ahead=3, blocks=30, policy="priority", max_tokens=16,
    )  # fmt: skip
    pairs = ((15, 22, 29), (18, 21, 46), (25, 17, 25), (6, 32, 20))
    for i, (prompt, guide, tokens) in enumerate(pairs):
        watched.add(f"pair{i}", prompt, guided(guide), tokens, priority=5)
    for step in range(32):
        for name, prompt, arrival in (("long0", 200, 22), ("long1", 207, 6)):
            if step == arrival:
                watched.add(name, prompt, tokens=3)
        watched.step()
    watched.run()
    assert watched.answers == {
        "pair0": 29, "pair1": 46, "pair2": 25, "pair3": 20, "long0": 3, "long1": 3,
    }  # fmt: skip


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 90),
        st.none() | st.lists(st.integers(1, 90), max_size=2),
        st.booleans(),
        st.integers(1, 6),
        st.integers(0, 2),
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=8,
)
ABORTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 7)), max_size=4)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@given(
    REQUESTS,
    ABORTS,
    st.sampled_from([12, 20, 64]),
    st.sampled_from([3, 4, 16]),
    st.sampled_from([(0, ""), (0, ""), (24, ""), (0, "align"), (0, "none"), (24, "align")]),
    st.booleans(),
    st.sampled_from([(0, False), (1, False), (20, False), (7, True)]),
    st.sampled_from([1, 1, 2, 5]),
)
@settings(max_examples=60)
def test_any_mix_of_requests(
    tiny: Path,
    policy: str,
    requests: Any,
    aborts: Any,
    blocks: int,
    rows: int,
    kinds: tuple[int, str],
    alike: bool,
    chunks: tuple[int, bool],
    interval: int,
) -> None:
    """All requests end, whenever they come or are aborted, and however little memory there is."""
    shared, (longest, adaptive) = "the same" if alike else None, chunks
    window, recurrent = kinds
    # vLLM only starts if the longest context fits, so a plain request always does.
    blocks += 8 * bool(window) + 4 * bool(recurrent)
    for kind in SCHEDULERS:
        watched = made(
            kind, tiny, max_rows=rows, blocks=blocks, policy=policy, max_tokens=48, window=window,
            recurrent=recurrent, longest=longest, adaptive=adaptive, interval=interval,
        )  # fmt: skip
        free = free_blocks(watched)
        expected = {}
        for step in range(32):
            for i, (prompt, guides, text, tokens, priority, arrival) in enumerate(requests):
                if arrival == step:
                    order = None if guides is None else guided(*guides, grounding=20 * text)
                    watched.add(str(i), prompt, order, tokens, shared, priority=priority)
                    # No longer than what fits into the KV cache beside the guides.
                    expected[str(i)] = watched.scheduler.requests[str(i)].max_tokens
            for when, who in aborts:
                if when == step:
                    watched.scheduler.finish_requests(str(who), RequestStatus.FINISHED_ABORTED)
                    expected.pop(str(who), None)
            watched.step()
        watched.run()
        for name, tokens in expected.items():
            refused = "leave no room" in (error := watched.errors.get(name, "")) or (
                "--max-num-seqs" in error
            )
            assert watched.answers.get(name, 0) == (0 if refused else tokens), name
        assert watched.answers.keys() <= {str(i) for i in range(len(requests))}, "a row of ours"
        assert set(leftovers(watched, free).values()) == {0}


def test_a_group_of_one_row_is_never_held(tiny: Path) -> None:
    """For instance a request that looks back: it waits for no other."""
    watched = made("sync", tiny)
    look = Look(1.0, 2, 0, "prefix+generated", True)
    watched.add("looks", 9, Order(Spec(Program(form=0.0), look=look)))
    assert watched.scheduler.groups.held == set()
