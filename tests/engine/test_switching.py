"""Entropy-adaptive switching over two engines, replayed with Hugging Face token by token."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm.sampling_params import StructuredOutputsParams

from divserve.decoding import METHODS, Stack
from divserve.engine.order import OnSmall
from divserve.errors import InvalidRequest, Unavailable
from tests.engine.cases import NEAR_TIE
from tests.support.engine import random_prompt
from tests.support.hf import Reference
from tests.support.hf_models import Moved, moved
from tests.support.models import make_tiny
from tests.support.two_engines import Answer, Pair, switching, two_engines

TOKENS = 40
VOCAB = 49_152
RULE: dict[str, Any] = {"window": 3, "min_run": 2}

Models = tuple[Any, Any]
"""The large and the small model, in Hugging Face."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("small"), vocab_size=VOCAB, seed=5)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model with the same tokenizer, whose vocabulary is padded further."""
    return make_tiny(tmp_path_factory.mktemp("large"), vocab_size=VOCAB + 64, seed=6)


@pytest.fixture(scope="module")
def models(large: Path, small: Path) -> Models:
    load = AutoModelForCausalLM.from_pretrained
    one, other = (load(path, dtype=torch.float32).eval() for path in (large, small))
    return one, other


@pytest.fixture(scope="module")
def pair(large: Path, small: Path) -> Iterator[Pair]:
    with two_engines(large, small, served_model_name=["tiny"]) as pair:
        yield pair


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [random_prompt(rng, rng.choice([1, 2, 31, 33, 64, 100]), VOCAB) for _ in range(8)]


@pytest.fixture(scope="module")
def threshold(models: Models, prompts: list[list[int]]) -> float:
    """The median entropy of these models' tokens, in bits, so that they take turns."""
    never = {"threshold": 100.0, **RULE}
    bits = [h for p in prompts[:3] for h in moved(*models, p, 20, **never).entropies]
    return statistics.median(bits)


def replay(
    models: Models, prompt: list[int], threshold: float, tokens: int = TOKENS, **fields: Any
) -> Moved:
    return moved(*models, prompt, tokens, threshold=threshold, **(RULE | fields))


def agrees(answer: Answer, expected: Moved, tokens: int = TOKENS) -> bool:
    """Tokens, models and entropies, up to the first near-tie of the reference."""
    sure = expected.sure(NEAR_TIE)
    bits = [row[0] / math.log(2) for row in answer.rows]
    return (
        answer.tokens[:sure] == expected.tokens[:sure]
        and answer.models[: sure + 1] == expected.models[: sure + 1]
        and bits[:sure] == pytest.approx(expected.entropies[:sure], abs=1e-3)
        and len(answer.tokens) == len(answer.models) == len(answer.rows) == tokens
    )


def test_answers_equal_the_replay(
    pair: Pair, models: Models, prompts: list[list[int]], threshold: float, large: Path
) -> None:
    """Sixteen requests at once: switching from either side, plain, and with a guide."""
    starts = ["small", "large"]
    moving: list[tuple[list[int], Any]] = [
        (p, switching(threshold=threshold, start=starts[i % 2], **RULE))
        for i, p in enumerate(prompts)
    ]
    reference = Reference(large)
    guide = prompts[2][:9]
    body = {"method": "cad", "guide": {"prompt": guide}}
    cad = Stack(METHODS["cad"].model_validate(body)).spec(0.0, [guide])
    others = [(p, order) for p in prompts[:4] for order in (None, cad)]
    answers = pair.ask_all([*moving, *others], max_tokens=TOKENS)
    expected = [replay(models, p, threshold, start=starts[i % 2]) for i, p in enumerate(prompts)]
    assert [agrees(a, e) for a, e in zip(answers, expected, strict=False)] == [True] * 8
    assert sum(e.sure(NEAR_TIE) for e in expected) > 4 * TOKENS
    assert sum(answer.switches for answer in answers[:8]) > 16
    for (prompt, order), answer in zip(others, answers[8:], strict=True):
        plain = reference.greedy(prompt, guide if order else None, "cad", TOKENS)
        ties = [i for i, m in enumerate(plain.margins) if m < NEAR_TIE]
        assert (
            answer.tokens[: ties[0] if ties else None] == plain.tokens[: ties[0] if ties else None]
        )
        assert answer.models == []
    assert set(pair.figures().values()) == {0}


@pytest.mark.parametrize("count", [40, pytest.param(160, marks=pytest.mark.long)])
def test_many_prompts(pair: Pair, models: Models, threshold: float, count: int) -> None:
    rng, tokens = random.Random(count), 8
    prompts = [random_prompt(rng, rng.randrange(1, 60), VOCAB) for _ in range(count)]
    order = switching(threshold=threshold, **RULE)
    answers = pair.ask_all([(prompt, order) for prompt in prompts], max_tokens=tokens)
    expected = [replay(models, prompt, threshold, tokens) for prompt in prompts]
    pairs = zip(answers, expected, strict=True)
    assert [agrees(answer, moved, tokens) for answer, moved in pairs] == [True] * count
    assert sum(moved.sure(NEAR_TIE) for moved in expected) > 0.9 * count * tokens
    assert sum(answer.switches for answer in answers) > count


def test_the_second_visit_hits_the_prefix_cache(pair: Pair, threshold: float) -> None:
    """The same answer again: nothing depends on the contents of the caches."""
    prompt = random_prompt(random.Random(2), 100, VOCAB)
    order = switching(threshold=threshold, **RULE)
    first, second = (pair.ask_all([(prompt, order)])[0] for _ in range(2))
    assert first == second
    assert first.switches > 0


def test_the_small_model_alone(pair: Pair, models: Models, prompts: list[list[int]]) -> None:
    order = OnSmall(None)
    (answer,) = pair.ask_all([(prompts[2], order)], max_tokens=TOKENS)
    expected = moved(*models, prompts[2], TOKENS, threshold=100.0, **RULE)
    sure = expected.sure(NEAR_TIE)
    assert answer.tokens[:sure] == expected.tokens[:sure]


def test_logprobs_come_from_the_model_of_the_token(
    pair: Pair, models: Models, threshold: float, prompts: list[list[int]]
) -> None:
    """One entry per token, with its decoded text, across every hand-off."""
    prompt = prompts[5]
    (answer,) = pair.ask_all([(prompt, switching(threshold=threshold, **RULE))], logprobs=2)
    assert answer.switches > 1
    ids = list(prompt)
    by_name = dict(zip(("large", "small"), models, strict=True))
    for token, model, entries in zip(answer.tokens, answer.models, answer.logprobs, strict=True):
        with torch.inference_mode():
            z = by_name[model](torch.tensor([ids])).logits[0, -1, :VOCAB].double()
        assert entries[token].logprob == pytest.approx(float(z.log_softmax(-1)[token]), abs=1e-3)
        assert entries[token].decoded_token is not None
        ids.append(token)


def test_a_stop_string_across_the_seam(pair: Pair, threshold: float) -> None:
    """Its first half comes from one model, its second half from the other."""
    order = switching(threshold=threshold, **RULE)
    tokenizer = pair.client.renderer.tokenizer
    for prompt in (random_prompt(random.Random(seed), 40, VOCAB) for seed in range(3, 30)):
        (free,) = pair.ask_all([(prompt, order)])
        seams = [i for i in range(1, 30) if free.models[i - 1] != free.models[i]]
        for seam in seams:
            before, both = (tokenizer.decode(free.tokens[:n]) for n in (seam, seam + 1))
            if "\ufffd" in both or both[: len(before)] != before or len(both) < len(before) + 2:
                continue
            stop = both[len(before) - 2 : len(before) + 2]
            if len(stop) < 4 or free.text.find(stop) != len(before) - 2:
                continue
            (answer,) = pair.ask_all([(prompt, order)], stop=[stop])
            assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
            assert answer.text == free.text[: len(before) - 2]
            assert answer.tokens == free.tokens[: seam + 1]
            assert set(pair.figures().values()) == {0}
            return
    pytest.fail("no prompt has a seam between two readable tokens")


def test_lengths_and_stop_tokens(pair: Pair, threshold: float, prompts: list[list[int]]) -> None:
    order = switching(threshold=threshold, **RULE)
    (free,) = pair.ask_all([(prompts[5], order)])
    for length in (1, 2, 3, 7, 20):
        (answer,) = pair.ask_all([(prompts[5], order)], max_tokens=length)
        assert answer.tokens == free.tokens[:length]
        assert answer.finish_reason == "length"
    last = free.tokens[12]
    first = free.tokens.index(last)
    (answer,) = pair.ask_all([(prompts[5], order)], stop_token_ids=[last])
    assert answer.tokens == free.tokens[: first + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", last)


def test_seeds_and_several_choices(pair: Pair, threshold: float, prompts: list[list[int]]) -> None:
    """Reproducible alone and beside others; choices differ; no segment repeats another's draws."""
    order = switching(threshold=threshold, **RULE)
    fields: dict[str, Any] = {"temperature": 1.0, "seed": 11, "n": 3}

    async def beside() -> list[Answer]:
        found = await asyncio.gather(
            pair.ask(prompts[4], order, **fields), *(pair.ask(p, order) for p in prompts)
        )
        return found[0]

    alone = pair.run(pair.ask(prompts[4], order, **fields))
    assert [a.tokens for a in pair.run(beside())] == [a.tokens for a in alone]
    assert len({tuple(a.tokens) for a in alone}) == 3
    assert all(a.switches > 0 for a in alone)
    assert set(pair.figures().values()) == {0}


def test_a_grammar_moves_along(pair: Pair, threshold: float, prompts: list[list[int]]) -> None:
    """Every hand-off is inside the text that the grammar describes."""
    grammar = StructuredOutputsParams(regex="[a-z]{60}")
    orders = [
        switching(threshold=threshold + shift, window=1, min_run=1) for shift in (-0.4, 0.0, 0.4)
    ]
    answers = pair.ask_all(
        [(p, o) for p in prompts[:3] for o in orders],
        structured_outputs=grammar,
        ignore_eos=False,
        max_tokens=80,
    )
    for answer in answers:
        assert len(answer.text) == 60
        assert answer.text.isascii()
        assert answer.text.islower()
        assert answer.finish_reason == "stop"
    assert max(answer.switches for answer in answers) > 3


@pytest.mark.parametrize(
    ("prompt", "fields", "param"),
    [
        ([5, VOCAB + 1], {}, "prompt"),
        ([5, 6], {"logit_bias": {VOCAB + 1: 1.0}}, "logit_bias"),
        ([5, 6], {"allowed_token_ids": [VOCAB + 1]}, "allowed_token_ids"),
    ],
)
def test_ids_that_the_small_model_lacks(
    pair: Pair, prompt: list[int], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        pair.run(pair.ask(prompt, switching(), **fields))
    assert refused.value.param == param


def test_clients_that_leave(pair: Pair, threshold: float, prompts: list[list[int]]) -> None:
    """Cancelled at any moment, before, in and between segments; nothing stays on either engine."""
    rng = random.Random(8)
    order = switching(threshold=threshold, window=1, min_run=1)

    async def leave(prompt: list[int]) -> None:
        task = asyncio.create_task(pair.ask(prompt, order, n=rng.choice([1, 2])))
        await asyncio.sleep(rng.uniform(0, 0.4))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def storm() -> None:
        for _ in range(6):
            await asyncio.gather(*(leave(p) for p in prompts * 2))

    pair.run(storm())
    assert set(pair.figures().values()) == {0}


def test_the_small_engine_dies(
    pair: Pair, models: Models, threshold: float, prompts: list[list[int]]
) -> None:
    """Its answers continue with the large model, token for token; new ones work. Runs last."""
    order = switching(threshold=threshold, **RULE)
    victim = pair.client.small.inner.engine_core.resources.engine_manager.processes[0].pid

    async def killed() -> list[Any]:
        tasks = [
            asyncio.create_task(pair.ask(p, o, max_tokens=200))
            for p in prompts
            for o in (order, OnSmall(None), None)
        ]
        await asyncio.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)

    found = pair.run(killed())
    by_name = dict(zip(("large", "small"), models, strict=True))
    for i, prompt in enumerate(prompts):
        (answer,) = found[3 * i]
        assert len(answer.tokens) == len(answer.models) == 200
        assert answer.models[-1] == "large"
        ids = torch.tensor([prompt + answer.tokens[:-1]])
        with torch.inference_mode():
            logits = {name: m(ids).logits[0, len(prompt) - 1 :] for name, m in by_name.items()}
        for step, (token, model) in enumerate(zip(answer.tokens, answer.models, strict=True)):
            z = logits[model][step][:VOCAB]
            assert float(z.max() - z[token]) < NEAR_TIE, (i, step)
        assert isinstance(found[3 * i + 1], Unavailable)
        assert len(found[3 * i + 2][0].tokens) == 200
    assert pair.client.health() == {"large": True, "small": False}
    (alone,) = pair.ask_all([(prompts[0], order)])
    assert set(alone.models) == {"large"}
    with pytest.raises(Unavailable):
        pair.run(pair.ask(prompts[0], OnSmall(None)))
    assert len(pair.client._hand_off) == 0
