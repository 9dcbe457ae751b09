"""Guided requests compose with what vLLM offers: lengths, stops, n, seeds, logprobs, grammar."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from divserve.decoding import STATISTICS, Program
from tests.support.engine import Engine, order, report_of
from tests.support.hf import Reference, combine

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["city", "people"],
    "additionalProperties": False,
}


# Asynchronous by default: the servers of the end-to-end tests, on a CPU, are synchronous.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="sync", marks=pytest.mark.long),
        pytest.param(True, id="async"),
    ],
)
def engine(tiny_with_tokenizer: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A model with a tokenizer; logprobs after temperature and penalties."""
    engine = Engine(
        tiny_with_tokenizer,
        asynchronous=request.param,
        max_model_len=512,
        logprobs_mode="processed_logprobs",
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(tiny_with_tokenizer: Path) -> Reference:
    """Hugging Face float32 of the same model."""
    return Reference(tiny_with_tokenizer)


@pytest.fixture(scope="module")
def streams(engine: Engine) -> tuple[list[int], list[int]]:
    """A prompt with a document, and the same without it."""
    encode = engine.llm.get_tokenizer().encode
    question = "Question: What is the capital of Atlantis? Answer:"
    return encode("The capital of Atlantis is Zorb. " + question), encode(question)


@pytest.fixture(autouse=True)
def nothing_left(engine: Engine) -> Iterator[None]:
    """After every test the engine is empty and all blocks are free."""
    yield
    assert set(engine.leftovers().values()) == {0}


def ask(
    engine: Engine,
    streams: tuple[list[int], list[int]],
    method: str = "cfg",
    *,
    guide: list[int] | None = None,
    fields: dict[str, Any] | None = None,
    **params: Any,
) -> Any:
    """One guided request; vLLM's RequestOutput."""
    from vllm import SamplingParams

    temperature = params.setdefault("temperature", 0)
    extra = order(method, guide or streams[1], temperature, **(fields or {}))
    return engine.generate([(streams[0], SamplingParams(**params, extra_args=extra))])[0]


def test_max_tokens(engine: Engine, streams: Any) -> None:
    answer = ask(engine, streams, max_tokens=7, ignore_eos=True).outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (7, "length")


def test_stop_token_ends_both_rows(engine: Engine, streams: Any) -> None:
    full = ask(engine, streams, max_tokens=20, ignore_eos=True).outputs[0].token_ids
    stop = full[5]
    answer = ask(engine, streams, max_tokens=20, ignore_eos=True, stop_token_ids=[stop]).outputs[0]
    assert list(answer.token_ids) == list(full[: full.index(stop) + 1])
    assert answer.finish_reason == "stop"


def test_stop_string(engine: Engine, streams: Any) -> None:
    full = ask(engine, streams, max_tokens=20, ignore_eos=True).outputs[0]
    stop = engine.llm.get_tokenizer().decode([full.token_ids[4]])
    answer = ask(engine, streams, max_tokens=20, ignore_eos=True, stop=[stop]).outputs[0]
    assert answer.finish_reason == "stop"
    assert answer.text == full.text.split(stop)[0]


def test_eos_of_the_primary_ends_the_request(engine: Engine, streams: Any) -> None:
    answer = ask(engine, streams, max_tokens=20, logit_bias={2: 100.0}).outputs[0]
    assert (list(answer.token_ids), answer.finish_reason) == ([2], "stop")


def test_min_tokens(engine: Engine, streams: Any) -> None:
    answer = ask(engine, streams, max_tokens=20, min_tokens=6, logit_bias={2: 100.0}).outputs[0]
    assert len(answer.token_ids) == 7


def test_guide_longer_than_the_prompt_may_reach_the_context_limit(
    engine: Engine, streams: Any
) -> None:
    """The answer ends at the guide's limit with finish_reason length, as at the primary's own."""
    guide = (streams[1] * 80)[:505]
    answer = ask(engine, streams, guide=guide, max_tokens=40, ignore_eos=True).outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (512 - 505, "length")


def test_prompt_may_reach_the_context_limit(engine: Engine, streams: Any) -> None:
    long = ((streams[0] * 80)[:505], streams[1])
    answer = ask(engine, long, max_tokens=7, ignore_eos=True).outputs[0]
    assert (len(answer.token_ids), answer.finish_reason) == (7, "length")


def test_guide_without_room_for_a_token_is_an_error_not_a_plain_answer(
    engine: Engine, streams: Any
) -> None:
    """The front end rejects this earlier; the scheduler does not rely on that."""
    guide = (streams[1] * 80)[:512]
    output = ask(engine, streams, guide=guide, max_tokens=4)
    assert output.outputs[0].finish_reason == "error"
    assert list(output.outputs[0].token_ids) == []
    report = report_of(output)
    assert report is not None
    assert "no room" in str(report.error)


@pytest.mark.parametrize("method", ["cfg", "adacad", "kl_temperature"])
def test_seeded_n_is_reproducible_in_any_batch(engine: Engine, streams: Any, method: str) -> None:
    """Three children, alone and among other requests; prompts longer than the step's budget."""
    from vllm import SamplingParams

    long = (streams[0] * 6, streams[1] * 4)
    sampling: dict[str, Any] = {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 50,
        "n": 3,
        "max_tokens": 12,
        "ignore_eos": True,
    }

    def tokens(output: Any) -> list[list[int]]:
        return [list(c.token_ids) for c in output.outputs]

    first = tokens(ask(engine, long, method, seed=7, **sampling))
    assert tokens(ask(engine, long, method, seed=8, **sampling)) != first
    assert len({tuple(t) for t in first}) == 3
    extra = order(method, long[1], 0.9)
    batch = [(long[0], SamplingParams(**sampling, seed=7, extra_args=extra))]
    batch += [
        (streams[1][: j + 2], SamplingParams(temperature=1.0, max_tokens=12)) for j in range(5)
    ]
    assert tokens(engine.generate(batch)[0]) == first


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("method", ["cfg", "cad", "adacad", "kl_temperature"])
def test_logprobs_are_those_of_the_guided_distribution(
    engine: Engine, streams: Any, reference: Reference, method: str, temperature: float
) -> None:
    output = ask(
        engine,
        streams,
        method,
        temperature=temperature,
        seed=3,
        max_tokens=8,
        logprobs=5,
        ignore_eos=True,
    ).outputs[0]
    z1, z2 = (teacher_forced(reference, s, output.token_ids) for s in streams)
    for i, entry in enumerate(output.logprobs):
        expected = (combine(method, z1[i], z2[i]) / temperature).log_softmax(-1)
        for token, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(expected[token]), abs=2e-3)


@torch.inference_mode()
def teacher_forced(reference: Reference, prompt: list[int], answer: Any) -> torch.Tensor:
    """Logits ``[len(answer), V]`` that predict the answer's tokens."""
    logits: torch.Tensor = reference.model(torch.tensor([prompt + list(answer)])).logits[0].float()
    return logits[len(prompt) - 1 : len(prompt) - 1 + len(answer)]


@torch.inference_mode()
def test_penalties_act_on_guided_logits(engine: Engine, streams: Any, reference: Reference) -> None:
    """Repetition and frequency penalties of the primary's tokens, after the guidance."""
    got = (
        ask(
            engine,
            streams,
            max_tokens=12,
            ignore_eos=True,
            repetition_penalty=1.3,
            frequency_penalty=0.5,
        )
        .outputs[0]
        .token_ids
    )
    answer: list[int] = []
    for _ in range(12):
        rows = [reference.model(torch.tensor([s + answer])).logits[0, -1].float() for s in streams]
        z = combine("cfg", *rows)
        for t in set(streams[0] + answer):
            z[t] = z[t] / 1.3 if z[t] > 0 else z[t] * 1.3
        for t in answer:
            z[t] -= 0.5
        answer.append(int(z.argmax()))
    assert list(got) == answer


def test_json_schema(engine: Engine, streams: Any) -> None:
    """Sampled guided answers of a random model still follow the grammar."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    # The last two drop all but a few tokens, which the grammar rarely allows.
    methods = ["cfg", "adacad", "cad", "kl_temperature", "uscd", "linear_alignment"]
    batch = [
        (
            streams[0],
            SamplingParams(
                temperature=1.0,
                seed=i,
                max_tokens=60,
                structured_outputs=StructuredOutputsParams(json=SCHEMA),
                extra_args=order(method, streams[1], 1.0),
            ),
        )
        for i, method in enumerate(methods)
    ]
    batch += [(streams[1], SamplingParams(temperature=0, max_tokens=20))] * 2
    for output in engine.generate(batch)[: len(methods)]:
        assert set(json.loads(output.outputs[0].text)) == {"city", "people"}


def test_what_is_dropped_comes_after_what_is_kept(engine: Engine, streams: Any) -> None:
    """A kept token, if it is allowed; else the best token of those allowed, as without a method."""
    from vllm import SamplingParams

    def first(fields: dict[str, Any] | None, allowed: list[int]) -> Any:
        extra = None if fields is None else order("linear_alignment", streams[1], 1.0, **fields)
        params = SamplingParams(
            temperature=1.0, seed=3, max_tokens=1, allowed_token_ids=allowed, extra_args=extra,
            logprobs=8,
        )  # fmt: skip
        return engine.generate([(streams[0], params)])[0].outputs[0]

    some = [11, 60, 61, 200, 333]
    only_the_first: dict[str, Any] = {"nucleus": 1e-6}
    plain, dropped = first(None, some), first(only_the_first, some)
    assert list(dropped.token_ids) == list(plain.token_ids)
    likely = {token: entry.logprob for token, entry in plain.logprobs[0].items()}
    for token in some:
        assert dropped.logprobs[0][token].logprob == pytest.approx(likely[token], abs=2e-3)
    kept = ask(engine, streams, "linear_alignment", fields=only_the_first, max_tokens=1)
    (best,) = kept.outputs[0].token_ids
    assert list(first(only_the_first, [*some, best]).token_ids) == [best]


NEUTRAL = {
    "cad": {"alpha": 0.0},
    "cfg": {"scale": 1.0},
    "kl_temperature": {"sigma": 0.0},
}


@pytest.mark.parametrize("method", NEUTRAL)
def test_neutral_strength_equals_plain(engine: Engine, streams: Any, method: str) -> None:
    """Sampled with a seed, so that the whole distribution has to agree."""
    from vllm import SamplingParams

    sampling: dict[str, Any] = {
        "temperature": 1.0,
        "seed": 5,
        "max_tokens": 24,
        "ignore_eos": True,
        "logprobs": 2,
    }
    plain = engine.generate([(streams[0], SamplingParams(**sampling))])[0].outputs[0]
    guided = ask(engine, streams, method, fields=NEUTRAL[method], **sampling).outputs[0]
    assert guided.token_ids == plain.token_ids
    assert [{t: x.logprob for t, x in step.items()} for step in guided.logprobs] == [
        {t: pytest.approx(x.logprob, abs=1e-4) for t, x in s.items()} for s in plain.logprobs
    ]


def test_identical_guide_equals_plain(engine: Engine, streams: Any) -> None:
    """AdaCAD has no neutral parameter: with a guide that equals the prompt its weight is 0."""
    from vllm import SamplingParams

    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 24, "ignore_eos": True}
    plain = engine.generate([(streams[0], SamplingParams(**sampling))])[0].outputs[0]
    guided = ask(engine, streams, "adacad", guide=streams[0], **sampling).outputs[0]
    assert guided.token_ids == plain.token_ids


def test_statistics_are_true(engine: Engine, streams: Any, reference: Reference) -> None:
    """The statistics sent to the front end: entropy, KL, JSD, weight of every token."""
    rows: list[Any] = []
    report = engine.scheduler.reports.put_on

    def spy(outputs: Any) -> Any:
        kept = report(outputs)
        for found in filter(None, map(report_of, kept)):
            rows.extend(found.statistics)
        return kept

    engine.scheduler.reports.put_on = spy
    try:
        tokens = ask(engine, streams, "adacad", max_tokens=10, ignore_eos=True).outputs[0].token_ids
    finally:
        del engine.scheduler.reports.put_on
    answer = reference.greedy(streams[0], streams[1], "adacad", 10)
    assert list(tokens) == answer.tokens
    z1 = teacher_forced(reference, streams[0], tokens).double()
    entropies = -(z1.softmax(-1) * z1.log_softmax(-1)).sum(-1)
    for row, (kl, jsd), entropy in zip(rows, answer.divergences, entropies, strict=True):
        figures = dict(zip(STATISTICS, row, strict=True))
        expected = {"entropy": float(entropy), "kl": kl, "jsd": jsd, "alpha": jsd, "factor": 1.0}
        found = {name: figures[name] for name in expected}
        assert found == pytest.approx(expected, rel=2e-3, abs=1e-4)
        assert figures["kept"] == z1.shape[-1]


def test_aborts_at_any_step_leave_nothing(engine: Engine, streams: Any) -> None:
    """Two hundred requests, aborted while waiting, prefilling or decoding."""
    from vllm import SamplingParams

    rng = random.Random(0)
    live: set[str] = set()
    added = 0
    while added < 200:
        if len(live) < 9:
            prompt = (streams[0] * 6)[: rng.randrange(2, 120)]
            guide = (streams[1] * 9)[: rng.choice([1, rng.randrange(2, 120)])]
            extra = order(rng.choice(["cfg", "cad"]), guide) if rng.random() < 0.7 else None
            params = SamplingParams(
                temperature=0, max_tokens=rng.randrange(1, 30), extra_args=extra
            )
            engine.core.add_request(f"r{added}", {"prompt_token_ids": prompt}, params)
            live.add(f"r{added}")
            added += 1
        if live and rng.random() < 0.35:
            victim = rng.choice(sorted(live))
            engine.core.abort_request([victim])
            live.discard(victim)
        for output in engine.core.step():
            if output.finished:
                live.discard(output.request_id)
    engine.core.abort_request(list(live))


def test_the_default_floor_is_minus_infinity() -> None:
    """On the wire too: a floor of 0 would forbid the negative weights of cfg below scale 1."""
    assert Program(*order("cad", [5])["divserve"]["spec"]["program"]).floor == -math.inf
