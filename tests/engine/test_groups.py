"""Groups that are not pairs: two guides, a grounding text, a method without a second stream."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import SamplingParams

from divserve.decoding import METHODS
from tests.engine.cases import NEAR_TIE, shared
from tests.support import hf
from tests.support.engine import Engine, counted, random_prompt, stacked
from tests.support.models import TINY_VOCAB
from tests.support.tops import Reported, streams_of, wrong

pytestmark = pytest.mark.gpu

TOKENS = 30
GUIDED = ("cad", "adacad", "coiecd", "cfg", "instructive", "linear_alignment", "uscd")
PROBABILITY_MARGIN = 10 * NEAR_TIE
"""USCD's logarithms of differences are steep: float32 needs a wider margin there."""


@dataclass
class Case:
    """One request and the reference's answer."""

    name: str
    prompt: list[int]
    order: dict[str, Any] | None
    expected: hf.Answer


@pytest.fixture(scope="module", params=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine whose budget cuts prompts and grounding texts into chunks."""
    engine = Engine(tiny, asynchronous=request.param == "async", max_num_seqs=48)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cases(tiny_reference: hf.Reference) -> list[Case]:
    """Every method alone, stacks of all kinds and a plain request, each twice."""
    return make_cases(tiny_reference, rounds=2)


def make_cases(reference: hf.Reference, rounds: int) -> list[Case]:
    """All kinds of groups over random prompts, in random order."""
    rng = random.Random(5)

    def prompts() -> tuple[list[int], list[int], list[int]]:
        lengths = [rng.choice([1, 2, 32, 33, 40, 100]) for _ in range(3)]
        return tuple(random_prompt(rng, n, TINY_VOCAB) for n in lengths)  # type: ignore[return-value]

    found = []
    for _ in range(rounds):
        for method in GUIDED:
            prompt, guide, _ = prompts()
            answer = reference.greedy(prompt, guide, method, TOKENS)
            found.append(Case(method, prompt, stacked([{"method": method}], [guide]), answer))
        found += [grounded(reference, *prompts(), kind) for kind in KINDS]
        found += [with_two_guides(reference, *prompts()), warm(reference, prompts()[0])]
        prompt = prompts()[0]
        found.append(Case("plain", prompt, None, reference.greedy(prompt, None, "", TOKENS)))
    rng.shuffle(found)
    return found


KINDS = ("min", "avg", "subtract", "contrast")


def grounded(
    reference: hf.Reference,
    prompt: list[int],
    guide: list[int],
    text: list[int],
    kind: str,
) -> Case:
    """VDGD alone in three variants, or added to CAD."""
    body: dict[str, Any] = {"method": "vdgd", "grounding": "x"}
    body |= {"reduce": "avg"} if kind == "avg" else {}
    body |= {"score": "subtract"} if kind in ("subtract", "contrast") else {}
    vector = reference.grounding(text, average=kind == "avg")
    score = body.get("score", "replace")
    if kind != "contrast":
        answer = reference.stacked(prompt, [], lambda z: hf.vdgd(z[0], vector, score), TOKENS)
        return Case(kind, prompt, stacked([body], [None], grounding=text), answer)

    def both(z: list[Tensor]) -> Tensor:
        return hf.vdgd(z[0], vector, score, hf.combine("cad", *z))

    answer = reference.stacked(prompt, [guide], both, TOKENS)
    order = stacked([body, {"method": "cad"}], [None, guide], grounding=text)
    return Case("cad+vdgd", prompt, order, answer)


def with_two_guides(
    reference: hf.Reference, prompt: list[int], guide: list[int], other: list[int]
) -> Case:
    """A contrast, and a temperature method with a guide of its own: greedy shows the contrast."""
    answer = reference.greedy(prompt, guide, "adacad", TOKENS)
    bodies = [{"method": "kl_temperature"}, {"method": "adacad"}]
    return Case("two guides", prompt, stacked(bodies, [other, guide]), answer)


def warm(reference: hf.Reference, prompt: list[int]) -> Case:
    """EDT: greedy answers equal the plain ones."""
    answer = reference.greedy(prompt, None, "", TOKENS)
    return Case("edt", prompt, stacked([{"method": "entropy_temperature"}], [None]), answer)


def run(engine: Engine, cases: list[Case]) -> list[list[int]]:
    """All cases at once."""
    outputs = engine.generate([(c.prompt, greedy(c.order)) for c in cases])
    return [list(o.outputs[0].token_ids) for o in outputs]


def greedy(order: dict[str, Any] | None, **fields: Any) -> SamplingParams:
    settings = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False}
    return SamplingParams(**(settings | fields), extra_args=order)


def near_tie(case: Case) -> float:
    """A margin that float32 does not decide."""
    return PROBABILITY_MARGIN if case.name == "uscd" else NEAR_TIE


def mismatches(cases: list[Case], answers: list[list[int]]) -> list[str]:
    """Where an answer deviates from the reference before the reference's first near-tie."""
    found = []
    for case, tokens in zip(cases, answers, strict=True):
        ties = [k for k, margin in enumerate(case.expected.margins) if margin < near_tie(case)]
        sure = ties[0] if ties else TOKENS
        if tokens[:sure] != case.expected.tokens[:sure] or len(tokens) != TOKENS:
            found.append(f"{case.name}: {tokens} != {case.expected.tokens}")
    return found


def test_mixed_batch_equals_the_reference(engine: Engine, cases: list[Case]) -> None:
    """Everything at once, in one engine."""
    assert mismatches(cases, run(engine, cases)) == []
    assert set(engine.leftovers().values()) == {0}


def test_mixed_batch_equals_solo_runs(engine: Engine, cases: list[Case]) -> None:
    mixed = run(engine, cases)
    solo = [run(engine, [case])[0] for case in cases]
    sure = [shared(case.expected, near_tie(case)) for case in cases]
    differing = [
        case.name
        for case, one, other, until in zip(cases, mixed, solo, sure, strict=True)
        if one[:until] != other[:until]
    ]
    assert differing == []


def test_scarce_memory(tiny: Path, cases: list[Case]) -> None:
    """Groups are preempted as a whole; a grounding text is read again from its start."""
    engine = Engine(tiny, blocks=17, max_model_len=256, max_num_seqs=12)
    preempted = counted(engine.scheduler, "_preempt_request")
    assert mismatches(cases, run(engine, cases)) == []
    assert len(preempted) > 0
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def test_aborts_leave_nothing(engine: Engine, cases: list[Case]) -> None:
    """Aborted after any number of steps, in any state of the members."""
    guided = [case for case in cases if case.order is not None]
    for steps in range(12):
        for i, case in enumerate(guided):
            engine.core.add_request(f"r{i}", {"prompt_token_ids": case.prompt}, greedy(case.order))
        for _ in range(steps):
            engine.core.step()
        engine.core.abort_request([f"r{i}" for i in range(len(guided))])
        assert set(engine.leftovers().values()) == {0}, steps


@pytest.mark.parametrize(
    "method", [n for n, m in METHODS.items() if m.neutral is not None and not m.amateurs]
)
def test_neutral_parameters_are_plain(engine: Engine, method: str) -> None:
    """Sampled with a seed: token for token the same as the plain request."""
    rng = random.Random(9)
    prompt, guide = (random_prompt(rng, n, TINY_VOCAB) for n in (50, 35))
    neutral = METHODS[method].neutral or {}
    order = stacked([{"method": method, **neutral}], [guide if METHODS[method].guided else None], 1)
    tokens = []
    for extra in (order, None):
        params = greedy(extra, temperature=1.0, seed=4)
        tokens.append(engine.generate([(prompt, params)])[0].outputs[0].token_ids)
    assert tokens[0] == tokens[1]


def test_second_temperature_is_that_of_its_own_guide(
    engine: Engine, tiny_reference: hf.Reference
) -> None:
    """Log-probs of the first token of a contrast that another guide cools."""
    prompt, guide, other = (list(range(a, a + 30)) for a in (10, 60, 110))
    bodies: list[dict[str, Any]] = [
        {"method": "cad"},
        {"method": "kl_temperature", "sigma": 3.0},
    ]
    params = greedy(stacked(bodies, [guide, other], 1.0), temperature=1.0, logprobs=5, max_tokens=1)
    (output,) = engine.generate([(prompt, params)])
    with torch.inference_mode():
        z = [
            tiny_reference.model(torch.tensor([s])).logits[0, -1].double()
            for s in (prompt, guide, other)
        ]
    cooled = hf.combine("cad", z[0], z[1]) / 2 ** (-hf.kl(z[0], z[2]) / 3.0)
    assert_logprobs(output, cooled)


def test_entropy_temperature_cools(engine: Engine, tiny_reference: hf.Reference) -> None:
    prompt = list(range(10, 60))
    order = stacked([{"method": "entropy_temperature", "theta": 2.0}], [None], 1.0)
    params = greedy(order, temperature=1.0, logprobs=5, max_tokens=1)
    (output,) = engine.generate([(prompt, params)])
    with torch.inference_mode():
        z = tiny_reference.model(torch.tensor([prompt])).logits[0, -1].double()
    assert_logprobs(output, hf.edt(z, theta=2.0))


TOP_WAYS: dict[str, tuple[list[dict[str, Any]], int, Any]] = {
    "cad": ([{"method": "cad"}], 5, lambda z: hf.combine("cad", *z)),
    "kl_temperature": (
        [{"method": "kl_temperature"}],
        1,
        lambda z: hf.combine("kl_temperature", *z),
    ),
    "dropping": (
        [{"method": "linear_alignment", "nucleus": 0.05}],
        20,
        lambda z: hf.combine("linear_alignment", *z, nucleus=0.05, nucleus_temperature=1.0),
    ),
    "two guides": (
        [{"method": "cad"}, {"method": "kl_temperature", "sigma": 3.0}],
        3,
        lambda z: hf.combine("cad", z[0], z[1]) / 2 ** (-hf.kl(z[0], z[2]) / 3.0),
    ),
    "entropy_temperature": ([{"method": "entropy_temperature", "theta": 2.0}], 20,
                            lambda z: hf.edt(z[0], theta=2.0)),
}  # fmt: skip
"""Methods, likeliest tokens, and the guided logits of the streams."""


def test_likeliest_tokens_of_every_stream(engine: Engine, tiny_reference: hf.Reference) -> None:
    """Requests that ask for different numbers, and others, in one batch of chunked prompts."""
    rng, reported = random.Random(6), Reported(engine)
    requests: list[Any] = [([5] * 40, greedy(stacked([{"method": "cad"}], [[7] * 9])))]
    prompts = []
    for bodies, top, _ in TOP_WAYS.values():
        own = [random_prompt(rng, n, TINY_VOCAB) for n in (70, 40, 9)]
        guided = [METHODS[body["method"]].guided for body in bodies]
        given = [own[i + 1] if needed else None for i, needed in enumerate(guided)]
        prompts.append(own[: 1 + sum(guided)])
        first = {**bodies[0], "trace": {"top": top}}
        order = stacked([first, *bodies[1:]], given, 1.0)
        requests.append((own[0], greedy(order, temperature=1.0, seed=3, logprobs=5)))
    outputs = engine.generate(requests)
    without, *tops = reported.take(outputs)
    assert without == []
    for (name, (_, k, way)), own, found, output in zip(
        TOP_WAYS.items(), prompts, tops, outputs[1:], strict=True
    ):
        (answer,) = output.outputs
        streams = streams_of(tiny_reference.model, own, answer.token_ids)
        assert wrong(found, k, streams, way) == [], name
        # The guided ones are those of the log-probs.
        for own_top, logprobs in zip(found, answer.logprobs, strict=True):
            for token, logprob in zip(*own_top[-1], strict=True):
                if token in logprobs:
                    assert logprob == pytest.approx(logprobs[token].logprob, abs=1e-5)
    assert set(engine.leftovers().values()) == {0}


def assert_logprobs(output: Any, guided: Tensor) -> None:
    """The log-probs that are returned are those of the guided distribution."""
    expected = guided.log_softmax(-1)
    (found,) = output.outputs[0].logprobs
    assert len(found) >= 5
    for token, entry in found.items():
        assert entry.logprob == pytest.approx(float(expected[token]), abs=1e-3)
