"""Look-back decoding: token identity, KL values and no leftovers in every mode of the engine."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams

from divserve.engine.models.hidden_store import HiddenStore
from divserve.engine.worker import worker
from tests.engine.cases import Case as Compared
from tests.engine.cases import mismatches
from tests.support.engine import Engine, counted, order, random_prompt
from tests.support.hf import Reference
from tests.support.look_back import (
    KL_ERROR,
    NEAR_TIE,
    as_vllm_draws,
    divergences,
    log_probs,
    look_back,
    problems,
    recorded,
)
from tests.support.models import TINY_VOCAB
from tests.support.platform import cpu_only

TOKENS = 20
RULES: list[dict[str, Any]] = [
    {"threshold": 1.5, "k": 5},
    {"threshold": 3.0, "k": 8, "window": 16},
    {"threshold": 1.0, "k": 3, "window": 0},
    {"threshold": 2.0, "k": 1, "reference": "prefix"},
    {"threshold": 2.0, "k": 4, "reference": "generated"},
    {"threshold": 1.5, "k": 5, "otherwise": "sample"},
    {"threshold": 0.0, "k": 5},
]
ROOMY: dict[str, Any] = {"max_model_len": 640}
MODES: dict[str, dict[str, Any]] = {
    "sync": ROOMY,
    "async": ROOMY | {"asynchronous": True},
    "budget of 32 tokens, 4 rows": ROOMY | {"max_num_batched_tokens": 32, "max_num_seqs": 4},
    "tight, async": {"max_model_len": 256, "blocks": 14, "asynchronous": True},
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Block boundaries, one-token prompts; every rule twice."""
    rng = random.Random(3)
    lengths = (1, 2, 31, 32, 33, 64, 90)
    return [random_prompt(rng, lengths[i % 7], TINY_VOCAB) for i in range(2 * len(RULES))]


def params(rule: dict[str, Any] | None, seed: int, **fields: Any) -> SamplingParams:
    settings = {
        "temperature": 0.7,
        "seed": seed,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "detokenize": False,
    } | fields
    extra = None if rule is None else order("look_back", None, settings["temperature"], **rule)
    return SamplingParams(**settings, extra_args=extra)


def plainly(case: Compared) -> SamplingParams:
    """Greedy, with the guide of the case if it has one."""
    return SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        extra_args=order(case.method, case.guide) if case.guide else None,
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch(
    tiny: Path, tiny_reference: Reference, prompts: list[list[int]], mode: str
) -> None:
    """All rules twice beside plain requests and a pair; the second round hits the prefix cache."""
    engine = Engine(tiny, look_back=True, **MODES[mode])
    rows, preempted = recorded(engine), counted(engine.scheduler, "_preempt_request")
    model = tiny_reference.model
    rules = RULES * 2
    guide = prompts[4][-20:]
    given = [*((prompt, None) for prompt in prompts[:3]), (prompts[5], guide)]
    others = [
        Compared(p, g, "cad" if g else "", TOKENS, tiny_reference.greedy(p, g, "cad", TOKENS))
        for p, g in given
    ]
    cached = alarms = 0
    for _ in range(2):
        rows.clear()
        requests = [(p, params(r, i)) for i, (p, r) in enumerate(zip(prompts, rules, strict=True))]
        requests += [(c.prompt, plainly(c)) for c in others]
        outputs = engine.generate(requests)
        answers = [list(o.outputs[0].token_ids) for o in outputs]
        assert mismatches(others, answers[len(prompts) :]) == []
        for output, prompt, answer, rule in zip(outputs, prompts, answers, rules, strict=False):
            assert len(answer) == TOKENS
            seen = rows[output.request_id]
            assert problems(model, prompt, answer, seen, rule) == []
            alarms += sum(row.state != 0 for row in seen)
        assert set(engine.leftovers().values()) == {0}
        cached = sum(o.num_cached_tokens for o in outputs)
    assert preempted if mode.startswith("tight") else cached > 0
    assert alarms > 40
    engine.close()


@pytest.fixture(scope="module", params=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(tiny, look_back=True, **MODES[request.param])
    yield engine
    engine.close()


@cpu_only("the draws are those of vLLM's CPU sampler")
def test_whole_generations_equal_the_algorithm(
    engine: Engine, tiny_reference: Reference, prompts: list[list[int]]
) -> None:
    """With the random numbers that vLLM's sampler draws for these seeds; n = 2 has two seeds."""
    wasted = 2 if engine.asynchronous else 1
    rules = [rule for rule in RULES if "otherwise" not in rule]
    cases = [(p, params(rules[i % len(rules)], i)) for i, p in enumerate(prompts)]
    cases.append((prompts[2], params(rules[0], 50, n=2)))
    outputs = engine.generate(cases)
    for (prompt, given), output in zip(cases, outputs, strict=True):
        rule = rules[outputs.index(output) % len(rules)] if given.n == 1 else rules[0]
        for choice in output.outputs:
            draw = as_vllm_draws(given.seed + choice.index, TINY_VOCAB)
            expected = look_back(tiny_reference.model, prompt, TOKENS, draw, wasted=wasted, **rule)
            sure = expected.sure(NEAR_TIE)
            assert list(choice.token_ids[:sure]) == expected.tokens[:sure]


def test_every_position(
    engine: Engine, tiny_reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL to all earlier positions in prompt and answer, cold and from the prefix cache."""
    found: list[tuple[int, list[float]]] = []
    nearest = HiddenStore.nearest

    def every(store: HiddenStore, rows: Any, spans: Any, most: int, *rest: Any) -> Any:
        last = int(store.seq_lens[rows[0]]) - 1
        if len(rows) == 1:
            edges = [torch.tensor([j], dtype=torch.int32) for j in range(last + 1)]
            kls = [float(nearest(store, rows, two, 1, *rest).kl) for two in pairwise(edges)]
            found.append((last, kls))
        return nearest(store, rows, spans, most, *rest)

    monkeypatch.setattr(HiddenStore, "nearest", every)
    prompt = list(range(40, 120))
    for _ in range(2):
        found.clear()
        rule = {"threshold": 0.0, "window": 0}
        (output,) = engine.generate([(prompt, params(rule, 0))])
        text = [*prompt, *output.outputs[0].token_ids]
        known = log_probs(tiny_reference.model, [text])[0]
        assert {last for last, _ in found} >= set(range(len(prompt) - 1, len(text) - 1))
        for last, kls in found:
            if last < len(text) - 1:
                expected = divergences(known[last], known[:last])
                assert kls == pytest.approx(expected.tolist(), abs=KL_ERROR)
    assert output.num_cached_tokens > 0


def test_logprobs_are_of_what_was_drawn_from(engine: Engine, tiny_reference: Reference) -> None:
    """The model's own log-probs in a clear step, softmax(−KL) of the candidates after an alarm."""
    prompt, rows = list(range(20, 60)), recorded(engine)
    (output,) = engine.generate([(prompt, params(RULES[0], 1, logprobs=5))])
    (choice,) = output.outputs
    known = log_probs(tiny_reference.model, [[*prompt, *choice.token_ids]])[0]
    kinds = set()
    for i, (entry, row) in enumerate(zip(choice.logprobs, rows[output.request_id], strict=True)):
        kinds.add(row.state)
        if row.kls:
            weights = torch.tensor(row.kls, dtype=torch.float64).neg().log_softmax(-1)
            expected = dict(zip(row.tokens, weights.tolist(), strict=True))
            assert set(row.tokens) <= entry.keys()
        else:
            expected = {token: float(known[len(prompt) - 1 + i][token]) for token in entry}
        for token, value in expected.items():
            assert entry[token].logprob == pytest.approx(value, abs=1e-3)
    assert len(kinds) == 2
    assert choice.token_ids[0] in choice.logprobs[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": list(range(100, 140))},
        {"bad_words": [], "logit_bias": {7: 100.0}},
        {"repetition_penalty": 1.4, "frequency_penalty": 1.0, "presence_penalty": 0.5},
        {"min_tokens": 12, "stop_token_ids": list(range(5, 400))},
        {"top_p": 0.3, "top_k": 2, "min_p": 0.2},
    ],
    ids="-".join,
)
def test_beside_other_parameters(engine: Engine, fields: dict[str, Any]) -> None:
    """Masks hold even where they forbid every candidate; nothing is left behind."""
    prompt, rows = list(range(20, 60)), recorded(engine)
    (output,) = engine.generate([(prompt, params({"threshold": 5.0, "k": 4}, 1, **fields))])
    tokens = output.outputs[0].token_ids
    allowed = fields.get("allowed_token_ids")
    assert allowed is None or set(tokens) <= set(allowed)
    assert "logit_bias" not in fields or set(tokens) == {7}
    assert len(tokens) == (TOKENS if "min_tokens" not in fields else len(tokens))
    assert len(tokens) >= fields.get("min_tokens", 0)
    assert len(rows[output.request_id]) == len(tokens)
    assert set(engine.leftovers().values()) == {0}


def test_up_to_the_context_limit(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer ends one token before the limit: the last candidates need one more position.

    At start-up the log reports what the store takes: 64 of 64 + 2·2·32 numbers per token.
    """
    said: list[str] = []
    monkeypatch.setattr(worker.logger, "info", lambda text, *values: said.append(text % values))
    engine = Engine(tiny, look_back=True, max_model_len=128, max_num_seqs=4)
    share = "Look-back: hidden states take 256 of 768 bytes per token of KV cache (33.3 %)"
    assert share in said
    for length in (60, 125, 126):
        prompt = list(range(20, 20 + length))
        (output,) = engine.generate([(prompt, params({"threshold": 50.0}, 1, max_tokens=200))])
        assert output.outputs[0].finish_reason == "length"
        assert len(prompt) + len(output.outputs[0].token_ids) == 127
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def test_aborts_leave_nothing(engine: Engine, prompts: list[list[int]]) -> None:
    """Aborts at every step, in the middle of alarms."""
    for steps in range(10):
        for i, prompt in enumerate(prompts):
            given = params({"threshold": 3.0 + i % 2, "k": 8}, i)
            engine.core.add_request(f"r{i}", {"prompt_token_ids": prompt}, given)
        for _ in range(steps):
            engine.core.step()
        engine.core.abort_request([f"r{i}" for i in range(len(prompts))])
        assert set(engine.leftovers().values()) == {0}, steps


def test_an_unknown_distance_fails_the_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is not a distance: the request ends with an error, and one beside it continues."""
    nearest = HiddenStore.nearest
    calls = []

    def broken(store: HiddenStore, rows: Any, *rest: Any) -> Any:
        found = nearest(store, rows, *rest)
        calls.append(len(rows))
        return found._replace(kl=torch.full_like(found.kl, math.nan)) if len(calls) > 2 else found

    monkeypatch.setattr(HiddenStore, "nearest", broken)
    prompt = list(range(20, 60))
    looking, plain = engine.generate([(prompt, params(RULES[0], 1)), (prompt, params(None, 1))])
    assert looking.outputs[0].finish_reason == "error"
    assert len(looking.outputs[0].token_ids) < TOKENS
    assert len(plain.outputs[0].token_ids) == TOKENS
    assert set(engine.leftovers().values()) == {0}
