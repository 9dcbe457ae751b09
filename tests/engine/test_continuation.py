"""A segment that continues another engine's tokens behaves as if it had made them itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from divserve.decoding import Program, Spec, Switch
from divserve.engine.order import Order
from tests.support.engine import Engine, counted, random_prompt
from tests.support.models import TINY_VOCAB

TOKENS = 24
NEVER = Switch(0.0, 1, 10_000, "large")
"""A rule that never wants the other model."""


@pytest.fixture(scope="module", params=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(tiny, asynchronous=request.param == "async")
    yield engine
    engine.close()


def order(output: list[int], switch: Switch = NEVER, vocab: int | None = None) -> dict[str, Any]:
    """``extra_args`` of a segment that continues from ``output``."""
    spec = Spec(Program(form=0.0), switch=switch)
    return Order(spec, vocab=vocab, output=tuple(output)).pack()


def params(extra: dict[str, Any], **fields: Any) -> SamplingParams:
    settings: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "detokenize": False,
    }
    return SamplingParams(**(settings | fields), extra_args=extra)


def tokens_of(engine: Engine, prompt: list[int], sampling: SamplingParams) -> list[int]:
    (output,) = engine.generate([(prompt, sampling)])
    return list(output.outputs[0].token_ids)


PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "frequency": {"frequency_penalty": 1.5},
    "presence": {"presence_penalty": 2.0},
    "repetition": {"repetition_penalty": 1.7},
    "minimum": {"min_tokens": 20, "ignore_eos": False, "stop_token_ids": list(range(5, 500))},
    "bad words": {"logit_bias": {7: 3.0, 8: -3.0}},
}


@pytest.mark.parametrize("fields", PENALTIES.values(), ids=PENALTIES)
def test_it_ends_as_the_uncut_answer_does(engine: Engine, fields: dict[str, Any]) -> None:
    """Penalties see the earlier tokens as output, and all lengths count from the real prompt."""
    rng = random.Random(3)
    differs = False
    for length in (1, 31, 40, 100):
        prompt = random_prompt(rng, length, TINY_VOCAB)
        whole = tokens_of(engine, prompt, params(order([]), **fields))
        plain = tokens_of(engine, prompt, params(order([])))
        differs |= whole != plain
        for cut in (1, 7, len(whole) - 1):
            if not 0 < cut < len(whole):
                continue
            rest = tokens_of(engine, prompt, params(order(whole[:cut]), **fields))
            assert rest == whole[cut:], (length, cut)
    assert differs == bool(fields)
    assert set(engine.leftovers().values()) == {0}


def test_continuations_survive_preemption(tiny: Path) -> None:
    """Scarce memory: preempted in the middle, a continuation still ends like the uncut answer."""
    engine = Engine(tiny, blocks=10, max_model_len=256, asynchronous=True)
    rng = random.Random(4)
    prompts = [random_prompt(rng, n, TINY_VOCAB) for n in (20, 50, 25, 60, 30, 70, 22, 40)]
    whole = [
        tokens_of(engine, p, params(order([]), frequency_penalty=0.8, max_tokens=40))
        for p in prompts
    ]
    preempted = counted(engine.scheduler, "_preempt_request")
    rest = engine.generate(
        [
            (p, params(order(w[:9]), frequency_penalty=0.8, max_tokens=40))
            for p, w in zip(prompts, whole, strict=True)
        ]
    )
    assert [list(o.outputs[0].token_ids) for o in rest] == [w[9:] for w in whole]
    assert len(preempted) > 0
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def test_the_rule_ends_the_segment_with_the_token_it_saw(engine: Engine) -> None:
    """No hand-off token: the answer so far, cut where the rule wants the other model."""
    prompt = list(range(20, 60))
    whole = tokens_of(engine, prompt, params(order([])))
    leaves = Switch(0.0, 3, 6, "small")
    assert tokens_of(engine, prompt, params(order([], leaves))) == whole[:6]
    begun = Switch(0.0, 3, 6, "small", recent=(1.0, 1.0), run=4)
    assert tokens_of(engine, prompt, params(order(whole[:4], begun))) == whole[4:6]
    assert set(engine.leftovers().values()) == {0}


def test_it_goes_ahead_of_those_who_have_nothing_yet(engine: Engine) -> None:
    """In a full engine, a continuation is the next to be admitted."""
    prompt = list(range(20, 60))
    limit = engine.scheduler.max_num_active_reqs
    for i in range(limit + 4):
        engine.core.add_request(f"r{i}", {"prompt_token_ids": prompt}, params({}))
    engine.core.step()
    engine.core.add_request("c", {"prompt_token_ids": prompt}, params(order([7, 8, 9])))
    waiting = [request.request_id for request in engine.scheduler.waiting]
    assert len(waiting) > 4
    assert waiting[0].startswith("c")
    engine.core.abort_request([*(f"r{i}" for i in range(limit + 4)), "c"])
    assert set(engine.leftovers().values()) == {0}


def test_ids_that_the_other_model_lacks_are_never_sampled(engine: Engine) -> None:
    prompt = list(range(20, 60))
    free = tokens_of(engine, prompt, params(order([]), temperature=2.0, seed=1))
    limit = sorted(free)[len(free) // 2]
    held = tokens_of(engine, prompt, params(order([], vocab=limit), temperature=2.0, seed=1))
    assert max(held) < limit <= max(free)


def test_a_grammar_goes_on(tiny_with_tokenizer: Path) -> None:
    """The continuation's own grammar has read what was written before it."""
    engine = Engine(tiny_with_tokenizer, max_model_len=512)
    tokenizer: Any = engine.llm.get_tokenizer()

    def sampling(output: list[int]) -> SamplingParams:
        grammar = StructuredOutputsParams(regex=r'\{"name": "[a-z]{3,12}", "age": [1-9][0-9]?\}')
        return params(order(output), structured_outputs=grammar, max_tokens=60, ignore_eos=False)

    prompt = tokenizer.encode("A person:")
    whole = tokens_of(engine, prompt, sampling([]))
    assert json.loads(tokenizer.decode(whole, skip_special_tokens=True)).keys() == {"name", "age"}
    for cut in range(1, len(whole)):
        assert tokens_of(engine, prompt, sampling(whole[:cut])) == whole[cut:], cut
    assert set(engine.leftovers().values()) == {0}
    engine.close()
