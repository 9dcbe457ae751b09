"""The governor of draft lengths, in simulated time: what it chooses, and what that costs."""

from __future__ import annotations

import random
from argparse import ArgumentParser
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divserve.engine.scheduler.acceptance import Acceptance
from divserve.engine.scheduler.draft_search import Expected, Search
from divserve.engine.scheduler.governor import OPTION, Governor, Proposal
from divserve.engine.scheduler.step_cost import ENOUGH, STALE_STEPS, WINDOW, Extra, StepCost
from divserve.startup.governor import add_flags, tell_engine
from tests.support.simulated import MOST, Simulation, made_of, step_of

MS = 1e-3
chances = st.floats(0, 1)


def linear(base: float, each: float) -> Callable[[int, int], float]:
    """Milliseconds of a step, and of each of its tokens."""
    return lambda rows, drafts: MS * (base + each * (rows + drafts))


def mean_lengths(simulation: Simulation, steps: int) -> list[float]:
    """Of each unit, over the last steps."""
    return [sum(unit) / steps for unit in zip(*simulation.lengths[-steps:], strict=True)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("rows", [[1], [2], [1, 2, 2]])
def test_drafts_without_a_price_are_as_long_as_proposed(rows: list[int], known: bool) -> None:
    simulation = Simulation(linear(10, 0), rows, [0.9] * len(rows), known)
    simulation.run(300)
    assert min(mean_lengths(simulation, 200)) > 0.95 * MOST


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("chance", [0.1, 0.9])
@pytest.mark.parametrize("rows", [[1], [2, 2]])
def test_no_drafts_where_a_token_costs_a_step(rows: list[int], chance: float, known: bool) -> None:
    """Nothing can be saved, so only one percent of the time is spent on finding out."""
    simulation = Simulation(linear(0, 1), rows, [chance] * len(rows), known)
    spent = simulation.run(1000) * len(rows) / (MS * sum(rows))
    assert 1 <= spent < 1.02
    assert sum(map(sum, simulation.lengths)) < 0.1 * 1000 * len(rows)


@pytest.mark.parametrize("known", [True, False])
def test_likely_drafts_first(known: bool) -> None:
    simulation = Simulation(linear(4, 1), [1] * 4, [0.95, 0.3, 0.05, 0.95], known)
    simulation.run(600)
    likely, unlikely, never, other = mean_lengths(simulation, 300)
    assert min(likely, other) > 2
    assert max(unlikely, never) < 0.2


def test_units_of_few_rows_first() -> None:
    """The drafts of a group of three cost three times as much as those of a plain request."""
    simulation = Simulation(linear(4, 1), [1, 3], [0.7, 0.7])
    simulation.run(600)
    plain, group = mean_lengths(simulation, 300)
    assert plain > 2 * group + 0.5


GRID = [
    (base, each, chance, rows)
    for base, each in [(10, 0), (10, 0.3), (10, 3), (3, 10)]
    for chance in (0.1, 0.6, 0.95)
    for rows in ((2,), (1, 2, 2))
]


def regret(simulated: Callable[[], Simulation], steps: int) -> float:
    """Time per token under the governor, divided by that of the better of none and all drafts."""
    return simulated().run(steps) / min(simulated().run(steps, 0), simulated().run(steps, MOST))


def check_regret(base: float, each: float, chance: float, rows: tuple[int, ...]) -> None:
    for known in (True, False):

        def simulated(known: bool = known) -> Simulation:
            return Simulation(linear(base, each), rows, [chance] * len(rows), known)

        assert regret(simulated, 2000) <= 1.03, known


@pytest.mark.parametrize(("base", "each", "chance", "rows"), GRID[1::7])
def test_never_much_slower_than_none_or_all(
    base: float, each: float, chance: float, rows: tuple[int, ...]
) -> None:
    check_regret(base, each, chance, rows)


@pytest.mark.long
@pytest.mark.parametrize(("base", "each", "chance", "rows"), GRID)
def test_never_much_slower_than_none_or_all_anywhere(
    base: float, each: float, chance: float, rows: tuple[int, ...]
) -> None:
    check_regret(base, each, chance, rows)


def test_price_of_the_first_draft() -> None:
    """Drafts that cost most of a step once, and nothing each, pay only if many are accepted."""

    def seconds(rows: int, drafts: int) -> float:
        return MS * (10 + 8 * (drafts > 0))

    simulation = Simulation(seconds, [1], [0.1])
    assert simulation.run(600) < 1.03 * 10 * MS
    simulation = Simulation(seconds, [1], [0.9])
    assert simulation.run(600) < 0.5 * 10 * MS


@pytest.mark.parametrize("known", [True, False])
def test_follows_the_acceptance(known: bool) -> None:
    """Where the scheduler does not see the drafts, it has to spend some on noticing."""
    simulation = Simulation(linear(10, 2), [2], [0.0], known)
    simulation.run(300)
    assert mean_lengths(simulation, 200) < [0.2]
    simulation.chances = [0.95]
    simulation.run(100 if known else 600)
    assert mean_lengths(simulation, 50) > [3]
    simulation.chances = [0.0]
    simulation.run(100)
    assert mean_lengths(simulation, 50) < [0.3]


def test_follows_the_price() -> None:
    """For example because more requests run, or other processes."""
    simulation = Simulation(linear(10, 0.1), [1], [0.8])
    simulation.run(300)
    assert mean_lengths(simulation, 100) > [4]
    simulation.seconds = linear(0, 10)
    simulation.run(400)
    assert mean_lengths(simulation, 100) < [0.5]
    simulation.seconds = linear(10, 0.1)
    simulation.run(1500)
    assert mean_lengths(simulation, 100) > [4]


@pytest.mark.parametrize("chance", [0.01, 0.9])
def test_stalls_change_nothing(chance: float) -> None:
    """One step in 20 takes 50 times as long."""
    rng = random.Random(3)
    smooth = linear(10, 1)

    def seconds(rows: int, drafts: int) -> float:
        return smooth(rows, drafts) * (50 if rng.random() < 0.05 else 1)

    simulation, quiet = (Simulation(s, [1], [chance]) for s in (seconds, smooth))
    simulation.run(600)
    quiet.run(600)
    found, expected = mean_lengths(simulation, 400), mean_lengths(quiet, 400)
    assert found == pytest.approx(expected, abs=0.5)


def test_a_slow_first_step_changes_nothing() -> None:
    """It compiles kernels."""
    slow = [100, 100]
    simulation = Simulation(
        lambda rows, drafts: slow.pop() if slow else MS * (rows + drafts), [1], [0.5]
    )
    simulation.run(30)
    assert simulation.run(1000) < 1.03 * MS


@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    base=st.floats(0.1, 20),
    each=st.floats(0, 20),
    given_chances=st.data(),
)
@settings(max_examples=10)
def test_lengths_are_those_that_exist(
    rows: list[int], base: float, each: float, given_chances: st.DataObject
) -> None:
    some = [given_chances.draw(chances) for _ in rows]
    simulation = Simulation(linear(base, each), rows, some, known=len(rows) % 2 == 0)
    simulation.run(60)
    assert all(0 <= n <= MOST for lengths in simulation.lengths for n in lengths)
    assert all(len(lengths) == len(rows) for lengths in simulation.lengths)
    assert len(simulation.governor) == len(rows)
    for i in range(len(rows)):
        simulation.governor.forget(str(i))
    assert not simulation.governor


@given(
    base=st.floats(0, 1), each=st.floats(0, 1), lengths=st.sets(st.integers(1, 7), min_size=2),
    rows=st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=30)
def test_durations_are_found(base: float, each: float, lengths: set[int], rows: int) -> None:
    """A step of rows, one with any draft, and each draft have a price."""
    cost = StepCost()
    for _ in range(ENOUGH):
        cost.add(rows, 0, 1.0)
    for length in lengths:
        cost.add(rows, length, 1.0 + base + each / rows * length)
    assert cost.plain(rows) == pytest.approx(1)
    extra = cost.extra(rows)
    assert extra is not None
    for length in range(1, 41):
        assert extra.of(length) == pytest.approx(base + each / rows * length, abs=1e-6)
    assert extra.of(0) == 0


def test_durations_between_known_numbers_of_rows() -> None:
    cost = StepCost()
    assert cost.plain(4) is None
    for rows in (2, 6):
        for _ in range(ENOUGH):
            assert cost.plain(rows) is None
            cost.add(rows, 0, rows)
        assert cost.plain(rows) == rows
    assert cost.plain(4) == pytest.approx(4)
    assert cost.plain(1) is cost.plain(7) is None
    cost.add(9, 3, 100.0)
    assert cost.extra(4) is None
    cost.add(6, 1, 7.0)
    extra = cost.extra(3)
    assert extra is not None
    assert extra.of(2) == pytest.approx(2)
    assert cost.extra_age(2) == STALE_STEPS == cost.plain_age(30)


def test_drafts_do_not_make_a_step_shorter() -> None:
    """If they seem to, the step without drafts has been measured in worse times."""
    cost = StepCost()
    for _ in range(ENOUGH):
        cost.add(1, 0, 2.0)
    assert cost.plain_age(1) == 0
    for _ in range(WINDOW):
        cost.add(1, 2, 1.0)
    assert cost.plain_age(1) > STALE_STEPS
    extra = cost.extra(1)
    assert extra is not None
    assert extra.of(5) == 0


@given(st.lists(st.tuples(st.integers(0, MOST), st.integers(0, MOST), st.booleans())))
def test_likelihoods_are_likelihoods(steps: list[tuple[int, int, bool]]) -> None:
    everybody = Acceptance(MOST)
    unit = Acceptance(MOST, everybody)
    for verified, accepted, beyond in steps:
        unit.observe(verified, min(verified, accepted), beyond)
    survival = [1.0, *unit.survival()]
    assert survival == sorted(survival, reverse=True)
    assert survival[-1] >= 0


def test_copied_texts_fail_at_once_or_not_at_all() -> None:
    """One rate for all positions, 0.3, would promise 0.43 tokens instead of 1.5."""
    unit = Acceptance(MOST, Acceptance(MOST))
    for _ in range(10):
        for accepted in (0, 0, 5, 0, 0, 5, 0, 0, 5, 0):
            unit.observe(5, accepted)
    assert sum(unit.survival()) == pytest.approx(1.5, abs=0.3)


def test_new_requests_are_expected_to_be_like_the_others() -> None:
    everybody = Acceptance(MOST)
    old = Acceptance(MOST, everybody)
    assert 0.3 < Acceptance(MOST, everybody).survival()[0] < 0.5
    for _ in range(30):
        old.observe(2, 2, True)
    assert Acceptance(MOST, everybody).survival()[0] > 0.85


def test_drafts_of_each_length_are_judged_by_themselves() -> None:
    """Of one request, the long ones are always right and the short ones always wrong."""
    now, verified = [10.0], {3: 0, MOST: 0}
    governor = Governor(clock=lambda: now[0])
    for step in range(400):
        length = (3, MOST)[step % 2]
        right = length == MOST
        proposals = [Proposal("0", 1, [1 if right else 2] * length)]
        lengths = governor.choose(proposals, 1, 1)
        output = step_of(proposals, lengths, 1)
        governor.scheduled(output)
        now[0] += MS * (10 + 3 * lengths[0])
        accepted = lengths[0] if right else 0
        governor.ran(output, made_of(proposals, [[1] * (accepted + 1)]))
        verified[length] += lengths[0] if step >= 100 else 0
    assert verified[MOST] > 0.9 * 150 * MOST
    assert verified[3] < 0.1 * 150 * 3


def test_drafts_have_to_pay_more_than_was_measured() -> None:
    """What they add was measured too low where they seem to pay best."""
    always = Expected([1.0], 1, False)
    assert Search([always], 1, 10.0, Extra(0, 8.0)).best().lengths == [1]
    assert Search([always], 1, 10.0, Extra(0, 9.5)).best().lengths == [0]


def test_only_decoding_is_measured() -> None:
    """Not what a prefill takes, nor an idle engine."""
    now = [10.0]
    governor = Governor(clock=lambda: now[0])
    proposals = [Proposal("0", 1, [1] * MOST)]
    for changes in (
        {"total_num_scheduled_tokens": 40}, {"scheduled_new_reqs": [object()]},
        {"total_num_scheduled_tokens": 0},
    ):  # fmt: skip
        for _ in range(ENOUGH):
            output = step_of(proposals, [0], 1)
            vars(output).update(changes)
            governor.scheduled(output)
            now[0] += 1
            governor.ran(output, made_of(proposals, [[2]]))
    assert governor.cost.plain(1) is None
    for _ in range(ENOUGH):
        now[0] += 100
        output = step_of(proposals, [0], 1)
        governor.scheduled(output)
        now[0] += 2
        governor.ran(output, made_of(proposals, [[2]]))
    assert governor.cost.plain(1) == pytest.approx(2)


def test_a_step_begins_when_the_one_before_it_ends() -> None:
    """Under asynchronous scheduling it is scheduled earlier."""
    now = [10.0]
    governor = Governor(clock=lambda: now[0])
    proposals = [Proposal("0", 1, [-1] * MOST)]
    outputs = [step_of(proposals, [0], 1) for _ in range(ENOUGH + 2)]
    governor.scheduled(outputs[0])
    for output, following in pairwise(outputs):
        governor.scheduled(following)
        now[0] += 3
        governor.ran(output, made_of(proposals, [[2]]))
    assert governor.cost.plain(1) == pytest.approx(3)


def test_outputs_that_are_missing() -> None:
    """A step that is not known, a request that has ended or whose token was taken back."""
    governor = Governor(clock=lambda: 1.0)
    proposals = [Proposal("0", 1, [1] * MOST)]
    governor.ran(step_of(proposals, [0], 1), made_of(proposals, [[2]]))
    nothing: list[list[list[int]]] = [[[]], []]
    for sampled in nothing:
        assert governor.choose(proposals, 1, 1) == [0]
        output = step_of(proposals, [0], 1)
        governor.scheduled(output)
        governor.ran(output, made_of(proposals, sampled))
    assert governor.choose([], 1, 1) == []


def test_the_flag_reaches_the_engine() -> None:
    parser = ArgumentParser()
    add_flags(parser)
    parser.set_defaults(speculative_config=None)
    args = parser.parse_args([])
    tell_engine(args)
    assert not hasattr(args, "additional_config")
    args = parser.parse_args(["--no-draft-governor"])
    args.additional_config = {"a": 1}
    tell_engine(args)
    assert args.additional_config == {"a": 1, OPTION: False}
