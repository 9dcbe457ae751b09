"""Scored texts against Hugging Face in float32, in every mode that reads them differently."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from divserve.decoding import METHODS, Reading
from divserve.engine.faults import LOST, NOT_NUMBERS
from divserve.engine.worker import reduction
from divserve_kernels import text_figures
from tests.engine.test_runners import EAGER, GRAPHS, V1, Way, case, gpu_case, ran
from tests.support import hf
from tests.support.engine import Engine, counted, order, random_prompt, report_of
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.platform import cpu_only
from tests.support.scored import differences, expected, logits, read_of, scored

pytestmark = pytest.mark.gpu

CLOSE = 1e-4


@dataclass
class Case:
    """One text behind a prompt, and behind a guide if there is one."""

    prompt: list[int]
    guide: list[int] | None
    text: list[int]
    wanted: dict[str, np.ndarray]

    def request(self) -> tuple[list[int], Any]:
        guides = [] if self.guide is None else [self.guide + self.text]
        return self.prompt + self.text, scored(Reading(len(self.text)), guides)


@pytest.fixture(scope="module", params=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine whose budget cuts prompts and texts into chunks."""
    engine = Engine(tiny, asynchronous=request.param == "async", max_num_seqs=48)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cases(tiny_reference: hf.Reference) -> list[Case]:
    return made_cases(tiny_reference)


def made_cases(reference: hf.Reference) -> list[Case]:
    """Texts of all lengths with a guide and without."""
    rng, found = random.Random(3), []
    for length in (1, 2, 31, 32, 33, 64, 65, 150):
        prompt, guide = (random_prompt(rng, n, TINY_VOCAB) for n in (rng.choice([1, 40, 96]), 70))
        for own in (None, guide):
            text = random_prompt(rng, length, TINY_VOCAB)
            found.append(made(reference, prompt, own, text))
    return found


def made(
    reference: hf.Reference, prompt: list[int], guide: list[int] | None, text: list[int]
) -> Case:
    own = logits(reference.model, prompt + text, len(text))
    other = None if guide is None else logits(reference.model, guide + text, len(text))
    return Case(prompt, guide, text, expected(text, own, other))


def worst(cases: list[Case], outputs: list[Any]) -> float:
    """The largest difference of any figure."""
    largest = 0.0
    for one, output in zip(cases, outputs, strict=True):
        found = differences(read_of(output), one.wanted)
        # Two tokens may be equally likely but for rounding.
        assert found.pop("rank") <= 1, one
        largest = max(largest, *found.values())
    return largest


def check(cases: list[Case], outputs: list[Any]) -> None:
    assert worst(cases, outputs) < CLOSE


def test_texts_equal_the_reference(engine: Engine, cases: list[Case]) -> None:
    check(cases, engine.generate([case.request() for case in cases]))
    assert set(engine.leftovers().values()) == {0}


def test_from_the_prefix_cache(engine: Engine, cases: list[Case]) -> None:
    """Prompts are cached, and so are whole texts; a hit ends before the first scored token."""
    engine.generate([case.request() for case in cases])
    outputs = engine.generate([case.request() for case in cases])
    check(cases, outputs)
    cached = [output.num_cached_tokens for output in outputs]
    assert any(cached)
    assert all(n < len(case.prompt) for n, case in zip(cached, cases, strict=True))


def test_beside_requests_that_decode(engine: Engine, cases: list[Case]) -> None:
    """Plain and guided answers are what they are without texts beside them."""
    rng = random.Random(4)
    prompts = [random_prompt(rng, n, TINY_VOCAB) for n in (20, 50, 90)]
    guide = random_prompt(rng, 30, TINY_VOCAB)
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    extra = [None, order("adacad", guide), None]
    decoding = [
        (prompt, SamplingParams(**settings, detokenize=False, extra_args=one))
        for prompt, one in zip(prompts, extra, strict=True)
    ]
    alone = [output.outputs[0].token_ids for output in engine.generate(decoding)]
    outputs = engine.generate([*decoding, *(case.request() for case in cases)])
    assert [output.outputs[0].token_ids for output in outputs[:3]] == alone
    check(cases, outputs[3:])


def test_scarce_memory(tiny: Path, cases: list[Case]) -> None:
    """Rows are preempted and read again; positions that are known are not reduced twice."""
    engine = Engine(tiny, blocks=17, max_model_len=256, max_num_seqs=12)
    preempted = counted(engine.scheduler, "_preempt_request")
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    decoding = [(case.prompt, SamplingParams(**settings, detokenize=False)) for case in cases[:6]]
    outputs = engine.generate([*decoding, *(case.request() for case in cases)])
    check(cases, outputs[6:])
    assert len(preempted) > 0
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def test_likeliest_tokens_and_chosen_ids(engine: Engine, tiny_reference: hf.Reference) -> None:
    """Lists of ids of any length, also none."""
    rng = random.Random(5)
    prompt, text = (random_prompt(rng, n, TINY_VOCAB) for n in (50, 70))
    ids = [random_prompt(rng, place % 4, TINY_VOCAB) for place in range(len(text))]
    params = scored(Reading(len(text), top=5, ids=ids))
    (output,) = engine.generate([(prompt + text, params)])
    read, log_p = read_of(output), logits(tiny_reference.model, prompt + text, 70).log_softmax(-1)
    best = log_p.topk(5)
    assert np.array_equal(shaped(read.top_ids, np.int32, 70), best.indices.numpy())
    near = np.abs(shaped(read.top_logprobs, np.float32, 70) - best.values.numpy())
    assert near.max() < CLOSE
    found = shaped(read.id_logprobs, np.float32, 70)
    for place, own in enumerate(ids):
        wanted = log_p[place, own].numpy()
        assert np.abs(found[place, : len(own)] - wanted).max(initial=0) < CLOSE


def shaped(packed: bytes, dtype: Any, rows: int) -> np.ndarray:
    return np.frombuffer(packed, dtype).reshape(rows, -1)


@pytest.mark.parametrize("method", ["cad", "adacad", "coiecd", "uscd", "linear_alignment"])
def test_under_a_method(engine: Engine, tiny_reference: hf.Reference, method: str) -> None:
    """All figures of one distribution are those of the method's, comparisons of the raw ones."""
    rng = random.Random(6)
    prompt, guide, text = (random_prompt(rng, n, TINY_VOCAB) for n in (80, 45, 70))
    program = METHODS[method].model_validate({"method": method, "guide": {"prompt": "x"}})
    params = scored(Reading(70, guided=True), [guide + text], program=program.program(0.0))
    (output,) = engine.generate([(prompt + text, params)])
    own, other = (logits(tiny_reference.model, p + text, 70) for p in (prompt, guide))
    chosen = torch.stack([hf.combine(method, *pair) for pair in zip(own, other, strict=True)])
    wanted = expected(text, own, other, chosen=chosen)
    # Excluded tokens.
    wanted["logprob"] = np.maximum(wanted["logprob"], -1e4)
    found = differences(read_of(output), wanted)
    assert found.pop("rank") <= 1
    assert max(found.values()) < 5e-4, found


def test_a_fault_ends_the_request_alone(
    engine: Engine, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text that cannot be reduced has no figures but an error; later ones are scored."""
    with monkeypatch.context() as broken:
        broken.setattr(reduction, "reduced", lambda *args: 1 / 0)
        report = report_of(engine.generate([cases[-1].request()])[0])
    assert report is not None
    assert (report.error, report.read) == (LOST, None)
    check(cases[-1:], engine.generate([cases[-1].request()]))


def test_logits_that_are_no_numbers(
    engine: Engine, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        whole = text_figures.text_figures
        broken.setattr(
            text_figures, "text_figures", lambda *args: tuple(x * math.nan for x in whole(*args))
        )
        report = report_of(engine.generate([cases[-1].request()])[0])
    assert report is not None
    assert report.error == NOT_NUMBERS


def test_the_amateur_is_a_reference(
    tiny: Path, tiny_reference: hf.Reference, tmp_path: Path
) -> None:
    """Its vocabulary is shorter. A contrast with it applies to every position."""
    path = make_tiny(tmp_path / "amateur", vocab_size=TINY_VOCAB - 24, seed=1)
    amateur = hf.Reference(path)
    engine = Engine(tiny, amateurs={"amateur": str(path)})
    rng = random.Random(8)
    prompt, text = (random_prompt(rng, n, TINY_VOCAB - 30) for n in (40, 80))
    own, other = (logits(ref.model, prompt + text, 80) for ref in (tiny_reference, amateur))
    body = METHODS["contrastive"].model_validate({"method": "contrastive"})
    plain = scored(Reading(80, reference=True))
    fields: Any = {"program": body.program(1.0), "amateurs": ("amateur",)}
    guided = scored(Reading(80, guided=True, reference=True), **fields)
    outputs = engine.generate([(prompt + text, plain), (prompt + text, guided)])
    assert_figures(outputs[0], expected(text, own, None, other))
    cut = own[:, : other.shape[1]]
    chosen = torch.full_like(own, -math.inf)
    chosen[:, : other.shape[1]] = 1.5 * cut - 0.5 * other
    # Of the tokens that both models have.
    best = cut.amax(-1, keepdim=True)
    chosen.masked_fill_(own < best + math.log(0.1), -math.inf)
    wanted = expected(text, own, None, other, chosen)
    wanted["logprob"] = np.maximum(wanted["logprob"], -1e4)
    assert_figures(outputs[1], wanted)
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def assert_figures(output: Any, wanted: dict[str, np.ndarray]) -> None:
    found = differences(read_of(output), wanted)
    assert found.pop("rank") <= 1
    assert max(found.values()) < 5e-4, found


@pytest.mark.parametrize(
    ("way", "mode", "blocks"),
    [
        case(EAGER, "sync", 0, name="sync", long=False),
        case(EAGER, "async", 17, name="tight"),
        gpu_case(GRAPHS, "async", 0, name="graphs"),
        gpu_case(V1, "async", 0, name="V1"),
    ],
)
def test_model_runner_v2(way: Way, mode: str, blocks: int, tiny: Path) -> None:
    result = ran(way, "child_reading", str(tiny), mode, str(blocks))
    assert result["worst"] < CLOSE
    assert set(result["leftovers"].values()) == {0}


@pytest.mark.long
@cpu_only("one GPU has no second rank")
@pytest.mark.parametrize("field", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_two_ranks(tiny: Path, cases: list[Case], field: str) -> None:
    """Long because two worker processes start: tensor-parallel ranks, or stages of a pipeline."""
    options: dict[str, Any] = {field: 2}
    engine = Engine(tiny, **options)
    check(cases, engine.generate([case.request() for case in cases]))
    assert set(engine.leftovers().values()) == {0}
    engine.close()
