"""Sampling draws from the model, whatever the prompts' lengths, and ends where it should."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from divserve.distill.sampling import Sequences, generator, hidden_states, sample
from divserve.distill.teacher import Teacher

PROMPTS = [[1, 5, 9], [1], [7, 7, 7, 7, 7, 7, 7, 8], [300, 2]]


def test_states_are_those_of_a_plain_forward_pass(big: Teacher) -> None:
    drawn = sample(big.model, PROMPTS, 10, [], generator(0, "test", 0))
    assert drawn.count.tolist() == [10] * 4
    for index, prompt in enumerate(PROMPTS):
        tokens = drawn.tokens[index, : len(prompt) + 10]
        assert tokens[: len(prompt)].tolist() == prompt
        assert int(drawn.first[index]) == len(prompt) - 1
        with torch.no_grad():
            states = hidden_states(big.model, tokens[None])[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(drawn.teacher[index], states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_are_drawn_from_the_distribution(big: Teacher, temperature: float) -> None:
    count, prompt = 6000, [1, 5, 9]
    drawn = sample(big.model, [prompt] * count, 1, [], generator(3, "test", 0), temperature)
    with torch.no_grad():
        logits = big.model(torch.tensor([prompt])).logits[0, -1].double()
    wanted = (logits / temperature).softmax(-1) * count
    found = torch.bincount(drawn.tokens[:, 3], minlength=len(wanted)).double()
    often = wanted >= 20
    assert often.sum() >= 5
    assert (~often).any()
    # Rare tokens form one class, so that every class is large enough for the test.
    test = chisquare(
        torch.cat([found[often], found[~often].sum()[None]]).numpy(),
        torch.cat([wanted[often], wanted[~often].sum()[None]]).numpy(),
    )
    assert test.pvalue > 1e-3


def test_a_text_ends_with_its_first_stop(big: Teacher) -> None:
    free = sample(big.model, PROMPTS * 4, 20, [], generator(0, "test", 1))
    stop = int(free.tokens[0, 3 + 4])
    drawn = sample(big.model, PROMPTS * 4, 20, [stop], generator(0, "test", 1))
    assert len(set(drawn.count.tolist())) > 1
    for index, prompt in enumerate(PROMPTS * 4):
        more = free.tokens[index, len(prompt) : len(prompt) + 20].tolist()
        wanted = more[: more.index(stop) + 1] if stop in more else more
        end = len(prompt) + int(drawn.count[index])
        assert drawn.tokens[index, len(prompt) : end].tolist() == wanted
        assert drawn.tokens[index, end:].eq(0).all()


def test_same_generator_same_text(big: Teacher) -> None:
    first, again, other = (
        sample(big.model, PROMPTS, 8, [], generator(0, "test", index)).tokens for index in (2, 2, 3)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_generators_differ_by_seed_purpose_and_index() -> None:
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    drawn = {tuple(torch.rand(4, generator=generator(*key)).tolist()) for key in keys}
    assert len(drawn) == len(keys)


def test_tick_can_stop_it(big: Teacher) -> None:
    ticks = iter(range(3))
    with pytest.raises(StopIteration):
        sample(
            big.model, PROMPTS, 50, [], generator(0, "test", 0), tick=lambda: (next(ticks), None)[1]
        )


def test_joined_keeps_every_row(big: Teacher) -> None:
    short = sample(big.model, PROMPTS[:2], 3, [], generator(0, "test", 0))
    long = sample(big.model, PROMPTS[2:], 9, [], generator(0, "test", 1))
    both = Sequences.joined([short, long])
    assert both.tokens.shape == (4, 17)
    for rows, part in ((slice(0, 2), short), (slice(2, 4), long)):
        again = both.take(torch.arange(4)[rows])
        for field in ("tokens", "first", "count", "teacher"):
            assert torch.equal(getattr(again, field), getattr(part, field))


def test_take_cuts_to_the_longest_row(big: Teacher) -> None:
    drawn = sample(big.model, PROMPTS, 10, [], generator(0, "test", 0))
    part = drawn.take(torch.tensor([1, 0]))
    assert part.tokens.shape == (2, 13)
    assert part.tokens[0, :11].tolist() == drawn.tokens[1, :11].tolist()
    row, offset = part.sampled()
    assert row.tolist() == [0] * 10 + [1] * 10
    assert offset.tolist() == [*range(10), *range(10)]
