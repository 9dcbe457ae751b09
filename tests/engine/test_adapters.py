"""LoRA adapters in the scheduler: a group's adapters are found together, and nothing waits forever.

Simulated workers, as in `test_scheduler`; with models: `test_lora`.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from divserve.decoding import BASE, Adapter
from divserve.engine.order import Order
from tests.engine.test_scheduler import SCHEDULERS, Watched, free_blocks, guided, leftovers

A, B, C = (LoRARequest(name, i, f"path/{name}") for i, name in enumerate("abc", start=1))
ADAPTERS: list[LoRARequest | None] = [None, A, B, C]


@pytest.fixture(params=SCHEDULERS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


class Counted(Watched):
    """Asserts in every step that its rows use no more adapters than the workers hold."""

    def update(self, output: Any, sampling: list[str]) -> None:
        rows = [self.scheduler.requests.get(name) for name in output.num_scheduled_tokens]
        used = {r.lora_request.lora_name for r in rows if r is not None and r.lora_request}
        assert len(used) <= self.scheduler.lora_config.max_loras, used
        super().update(output, sampling)


def made(kind: str, model: Path, max_loras: int, **sizes: Any) -> Counted:
    cls, steps = SCHEDULERS[kind]
    return Counted(cls, model, max_loras=max_loras, **steps | sizes)


def packed(adapter: LoRARequest | None) -> Adapter:
    """As an order names it."""
    if adapter is None:
        return BASE
    return (adapter.lora_name, adapter.lora_int_id, adapter.lora_path)


def read_by(order: Order, *adapters: LoRARequest | None) -> Order:
    """The order, its guides read with these adapters."""
    return replace(order, spec=replace(order.spec, adapters=tuple(map(packed, adapters))))


def members(watched: Counted, name: str) -> list[str | None]:
    group = watched.scheduler.groups.get(name)
    return [m.lora_request and m.lora_request.lora_name for m in group.members]


def test_the_rows_of_a_group_have_their_own_adapters(tiny: Path, kind: str) -> None:
    watched = made(kind, tiny, 2)
    watched.add("same", 9, guided(7, 8), lora_request=A)
    watched.add("base", 9, read_by(guided(7), None), lora_request=A)
    watched.add("other", 9, read_by(guided(7, 8), B, A), lora_request=A)
    watched.add("adapter beside base", 9, read_by(guided(7), B))
    assert members(watched, "same") == ["a", "a", "a"]
    assert members(watched, "base") == ["a", None]
    assert members(watched, "other") == ["a", "b", "a"]
    assert members(watched, "adapter beside base") == [None, "b"]
    watched.run()
    assert set(watched.answers.values()) == {4}


def test_an_adapter_of_a_held_row_is_in_use(tiny: Path, kind: str) -> None:
    """vLLM counts only rows that the step schedules: it would admit another adapter beside a
    primary that waits for the prefill of its guide, and fail when both run."""
    watched = made(kind, tiny, 1)
    watched.add("group", 9, guided(300), lora_request=A)
    watched.step()
    watched.step()
    watched.add("plain", 9, lora_request=B, tokens=40)
    watched.run()
    assert watched.answers == {"group": 4, "plain": 40}


def test_a_guide_with_the_prompt_of_its_primary_hits_no_cache_of_it(tiny: Path) -> None:
    """Keys and values differ by adapter."""
    watched = made("sync", tiny, 2)
    watched.add("first", 48, lora_request=A, text="x")
    prompt = [*watched.scheduler.requests["first"].prompt_token_ids]
    watched.run()
    order = guided(1)
    same = replace(order, spec=replace(order.spec, guides=[prompt]))
    cached = {}
    manager = watched.scheduler.kv_cache_manager
    for name, adapter in {"a": A, "b": B, "base": None}.items():
        watched.add(name, 48, read_by(same, adapter), text="x", lora_request=A)
        _, guide = watched.scheduler.groups.get(name).members
        cached[name] = manager.get_computed_blocks(guide)[1]
        watched.run()
    assert cached == {"a": 32, "b": 0, "base": 0}


@pytest.mark.parametrize("guide", [300, 9, 1])
def test_a_group_of_two_adapters_gets_both(tiny: Path, kind: str, guide: int) -> None:
    """Others keep one of the two adapters in use all the time: without a place of its own in the
    queue, the group would wait for as long as they come."""
    watched = made(kind, tiny, 2)
    watched.add("c0", 9, lora_request=C, tokens=8)
    watched.step()
    watched.add("group", 9, read_by(guided(guide), B), lora_request=A)
    for i in range(1, 40):
        watched.add(f"c{i}", 9, lora_request=C, tokens=8)
        watched.step()
        watched.step()
        if "group" in watched.answers:
            break
    else:
        pytest.fail("the group waits for as long as others come")
    watched.run()
    assert watched.answers.pop("group") == 4
    assert set(watched.answers.values()) == {8}


def test_what_needs_no_other_adapter_passes_a_waiting_group(tiny: Path, kind: str) -> None:
    watched = made(kind, tiny, 2)
    watched.add("c", 9, lora_request=C, tokens=60)
    watched.step()
    watched.add("group", 9, read_by(guided(9), B), lora_request=A)
    watched.add("plain", 9)
    watched.add("a", 9, lora_request=A)
    watched.add("guided", 9, guided(9))
    for _ in range(20):
        watched.step()
    assert {"plain", "a", "guided"} <= set(watched.answers)
    assert "group" not in watched.answers
    watched.run()
    assert watched.answers["group"] == 4


def test_a_group_that_never_fits_is_refused(tiny: Path, kind: str) -> None:
    watched = made(kind, tiny, 1)
    watched.add("group", 9, read_by(guided(9), B), lora_request=A)
    watched.add("plain", 9, lora_request=A)
    watched.run()
    assert watched.answers == {"group": 0, "plain": 4}
    assert "more LoRA adapters than --max-loras 1" in watched.errors["group"]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("max_loras", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_a_storm_leaves_nothing(
    tiny: Path, kind: str, max_loras: int, policy: str, seed: int
) -> None:
    """Mixed adapters, one-token guides, groups of three, preemption; everything ends."""
    rng = random.Random(seed)
    watched = made(kind, tiny, max_loras, policy=policy, blocks=24, max_rows=6)
    free = free_blocks(watched)
    expected = {}
    for i in range(60):
        name, tokens = str(i), rng.randrange(1, 30)
        own = rng.choice(ADAPTERS)
        lengths = rng.choice([(), (1,), (9,), (90,), (1, 20), (30, 9)])
        order = guided(*lengths) if lengths else None
        if order is not None and rng.random() < 0.7:
            others = [rng.choice(ADAPTERS) for _ in lengths]
            if len({x.lora_name for x in (own, *others) if x is not None}) > max_loras:
                others = [None] * len(lengths)
            order = read_by(order, *others)
        watched.add(
            name, rng.choice([1, 9, 60]), order, tokens, lora_request=own,
            priority=rng.randrange(3),
        )  # fmt: skip
        expected[name] = tokens
        for _ in range(rng.randrange(3)):
            watched.step()
    # A pipeline takes as many steps for a token as it has stages.
    watched.run(4000)
    assert watched.answers == expected
    assert set(leftovers(watched, free).values()) == {0}
