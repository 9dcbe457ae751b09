"""Amateurs beside the served model: token identity in every mode of the engine."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from divserve.engine.models.loader import amateur_logits
from tests.engine.cases import Case, mismatches
from tests.support import hf
from tests.support.engine import Engine, counted, order, random_prompt, stacked
from tests.support.hf_models import Trio, contrast, without_layers
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.tops import Reported, streams_of, wrong

TOKENS = 24
BODIES: list[dict[str, Any] | None] = [
    {"method": "contrastive"},
    {"method": "contrastive", "beta": 1.0, "alpha": 0.02},
    {"method": "contrastive", "form": "original", "amateur_temperature": 0.5},
    {"method": "contrastive", "alpha": 0.0, "amateur_temperature": 2.0},
    {"method": "proxy_tuning"},
    {"method": "dexperts"},
    {"method": "dexperts", "alpha": 0.5, "filter_p": 0.5},
    None,
]
ROOMY: dict[str, Any] = {"max_model_len": 1024}
MODES = {
    "sync": ROOMY,
    "async": ROOMY | {"asynchronous": True},
    "budget of 32 tokens, 5 rows": ROOMY | {"max_num_batched_tokens": 32, "max_num_seqs": 5},
    "tight, async": {"max_model_len": 256, "blocks": 14, "asynchronous": True},
}


@pytest.fixture(scope="module")
def amateur(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model; its vocabulary is padded less than the served one's."""
    return make_tiny(tmp_path_factory.mktemp("amateur"), vocab_size=TINY_VOCAB - 24, seed=1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third one; its vocabulary is padded more."""
    return make_tiny(tmp_path_factory.mktemp("tuned"), vocab_size=TINY_VOCAB + 8, seed=2)


@pytest.fixture(scope="module")
def trio(tiny_reference: hf.Reference, amateur: Path, tuned: Path) -> Trio:
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (amateur, tuned)
    ]
    return Trio(tiny_reference, *models)


def aided(prompt: list[int], body: dict[str, Any] | None, trio: Trio) -> Case:
    answer = trio.greedy(prompt, body, TOKENS)
    return Case(prompt, None, body["method"] if body else "", TOKENS, answer)


@pytest.fixture(scope="module")
def cases(trio: Trio, tiny_reference: hf.Reference) -> list[tuple[Case, dict[str, Any] | None]]:
    return made_cases(trio, tiny_reference)


def made_cases(trio: Trio, reference: hf.Reference) -> list[tuple[Case, dict[str, Any] | None]]:
    """Every body twice and two pairs of rows, as cases and orders, in random order."""
    rng = random.Random(7)
    found: list[tuple[Case, dict[str, Any] | None]] = []
    for body in BODIES * 2:
        # Some ids have no row in the amateur, as padding may have it.
        prompt = random_prompt(rng, rng.choice([1, 31, 33, 64, 90]), TINY_VOCAB)
        found.append((aided(prompt, body, trio), stacked([body], [None]) if body else None))
    for _ in range(2):
        prompt, guide = (random_prompt(rng, n, TINY_VOCAB) for n in (40, 20))
        answer = reference.greedy(prompt, guide, "cad", TOKENS)
        found.append((Case(prompt, guide, "cad", TOKENS, answer), order("cad", guide)))
    rng.shuffle(found)
    return found


def greedy(extra: dict[str, Any] | None, **fields: Any) -> SamplingParams:
    settings = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "detokenize": False}
    return SamplingParams(**(settings | fields), extra_args=extra)


def run(engine: Engine, cases: list[tuple[Case, dict[str, Any] | None]]) -> list[Any]:
    return engine.generate([(case.prompt, greedy(extra)) for case, extra in cases])


@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch_equals_the_reference(
    tiny: Path, amateur: Path, tuned: Path, cases: Any, mode: str
) -> None:
    """Sixteen requests of all methods and plain ones; the second round hits the prefix cache."""
    amateurs = {"amateur": str(amateur), "tuned": str(tuned)}
    engine = Engine(tiny, amateurs=amateurs, **MODES[mode])
    preempted = counted(engine.scheduler, "_preempt_request")
    cached = 0
    for _ in range(2):
        outputs = run(engine, cases)
        answers = [list(o.outputs[0].token_ids) for o in outputs]
        assert mismatches([case for case, _ in cases], answers) == []
        assert set(engine.leftovers().values()) == {0}
        cached = sum(o.num_cached_tokens for o in outputs)
    tight = mode.startswith("tight")
    assert (len(preempted) > 0, cached > 0) == (tight, not tight)
    engine.close()


@pytest.fixture(scope="module")
def engine(tiny: Path, amateur: Path, tuned: Path) -> Iterator[Engine]:
    engine = Engine(tiny, amateurs={"amateur": str(amateur), "tuned": str(tuned)})
    yield engine
    engine.close()


def test_likeliest_tokens_of_every_model(engine: Engine, trio: Trio) -> None:
    """One amateur, two, and two with a guide of the temperature, beside a plain contrast."""
    rng, reported = random.Random(8), Reported(engine)
    models, shared = [trio.served, *trio.amateurs], TINY_VOCAB - 24
    requests: list[Any] = []
    prompt, guide = (random_prompt(rng, n, shared) for n in (50, 20))
    asking: list[dict[str, Any]] = [{**BODIES[i], "trace": {"top": 4}} for i in (0, 4, 5)]  # type: ignore[dict-item]
    for bodies in ([asking[0]], [asking[1]], [asking[2], {"method": "kl_temperature"}]):
        order = stacked(bodies, [None, guide][: len(bodies)], 1.0)
        requests.append((prompt, greedy(order, temperature=1.0, seed=2)))
    outputs = engine.generate([*requests, (prompt, greedy(stacked([{"method": "cfg"}], [guide])))])
    *tops, none = reported.take(outputs)
    assert none == []
    for which, found, output in zip((0, 1, 2), tops, outputs, strict=False):
        answer = output.outputs[0].token_ids
        own = [streams_of(model, [prompt], answer)[0] for model in models]
        amateurs = [logits[:, :shared] for logits in own[1 : 2 + (which > 0)]]
        second = streams_of(trio.served, [guide], answer) if which == 2 else []
        way = partial(_cooled, asking[which], shared)
        assert wrong(found, 4, [own[0], *second, *amateurs], way) == [], which


def _cooled(body: dict[str, Any], shared: int, logits: list[torch.Tensor]) -> torch.Tensor:
    """The guided logits of a primary, a guide if there are four streams, and its amateurs."""
    primary, amateur, tuned = logits[0], logits[-2], logits[-1]
    if len(logits) == 2:
        amateur = tuned
    made = contrast(body, primary[:shared], amateur, tuned)
    return made / 2 ** -hf.kl(primary, logits[1]) if len(logits) == 4 else made


@pytest.mark.parametrize("body", BODIES[:-1], ids=lambda b: "-".join(map(str, b.values())))
def test_logprobs_are_those_of_the_contrast(
    engine: Engine, trio: Trio, body: dict[str, Any]
) -> None:
    prompt = list(range(20, 60))
    params = greedy(stacked([body], [None], 1.0), temperature=1.0, logprobs=5, max_tokens=1)
    (output,) = engine.generate([(prompt, params)])
    with torch.inference_mode():
        z, amateur, tuned = (
            model(torch.tensor([prompt])).logits[0, -1, : TINY_VOCAB - 24].double()
            for model in (trio.served, *trio.amateurs)
        )
    expected = contrast(body, z, amateur, tuned).log_softmax(-1)
    (found,) = output.outputs[0].logprobs
    likely = {token: entry.logprob for token, entry in found.items() if entry.logprob > -math.inf}
    assert likely
    for token, logprob in likely.items():
        assert logprob == pytest.approx(float(expected[token]), abs=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        {"method": "contrastive", "beta": 0, "alpha": 0},
        {"method": "proxy_tuning", "alpha": 0},
        {"method": "dexperts", "alpha": 0, "filter_p": 1},
    ],
    ids=lambda body: str(body["method"]),
)
def test_neutral_parameters_are_plain(engine: Engine, body: dict[str, Any]) -> None:
    """Sampled with a seed, among the tokens that all models have."""
    prompt = list(range(30, 80))
    known = list(range(TINY_VOCAB - 24))
    answers = []
    for extra in (stacked([body], [None], 1.0), None):
        allowed = None if extra else known
        params = greedy(extra, temperature=1.0, seed=4, allowed_token_ids=allowed)
        answers.append(engine.generate([(prompt, params)])[0].outputs[0].token_ids)
    assert answers[0] == answers[1]


def test_a_temperature_beside_the_amateur_has_a_guide_of_its_own(
    engine: Engine, trio: Trio
) -> None:
    prompt, guide = list(range(20, 60)), list(range(60, 90))
    bodies: list[dict[str, Any]] = [
        {"method": "contrastive"},
        {"method": "kl_temperature", "sigma": 3.0},
    ]
    params = greedy(stacked(bodies, [None, guide], 1.0), temperature=1.0, logprobs=5, max_tokens=1)
    (output,) = engine.generate([(prompt, params)])
    with torch.inference_mode():
        z, other = (
            trio.served(torch.tensor([ids])).logits[0, -1].double() for ids in (prompt, guide)
        )
        amateur = trio.amateurs[0](torch.tensor([prompt])).logits[0, -1].double()
    shared = len(amateur)
    made = contrast({"method": "contrastive"}, z[:shared], amateur, None)
    expected = (made / 2 ** (-hf.kl(z, other) / 3.0)).log_softmax(-1)
    (found,) = output.outputs[0].logprobs
    likely = {token: e.logprob for token, e in found.items() if e.logprob > -math.inf}
    assert likely
    for token, logprob in likely.items():
        assert logprob == pytest.approx(float(expected[token]), abs=1e-3)


@pytest.mark.parametrize("which", [0, 1], ids=["amateur", "tuned"])
def test_logits_of_an_amateur_are_not_numbers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """The logits of one request in the fourth step: only that request ends there."""
    batch = [
        (list(range(n, 60)), greedy(stacked([{"method": "dexperts"}], [None]))) for n in (9, 20)
    ]
    healthy = [output.outputs[0] for output in engine.generate(batch)]
    compute, steps = amateur_logits, 0

    def poisoned(model: Any, hidden_states: Any, rows: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        found = compute(model, hidden_states, rows)
        if steps == 4:
            found[which * len(rows)] = float("nan")
        return found

    monkeypatch.setattr("divserve.engine.worker.amateurs.amateur_logits", poisoned)
    victim, other = (output.outputs[0] for output in engine.generate(batch))
    assert (victim.finish_reason, other.finish_reason) == ("error", "length")
    assert victim.token_ids == healthy[0].token_ids[:3]
    assert other.token_ids == healthy[1].token_ids
    assert set(engine.leftovers().values()) == {0}


def test_aborts_leave_nothing(engine: Engine, cases: Any) -> None:
    for steps in range(8):
        for i, (case, extra) in enumerate(cases):
            engine.core.add_request(f"r{i}", {"prompt_token_ids": case.prompt}, greedy(extra))
        for _ in range(steps):
            engine.core.step()
        engine.core.abort_request([f"r{i}" for i in range(len(cases))])
        assert set(engine.leftovers().values()) == {0}, steps


def test_layers_left_out_share_all_weights(tmp_path: Path, tiny_reference: hf.Reference) -> None:
    """drop:N is the served model without a block of middle layers; its weights take no memory."""
    from divserve.engine.models.drop import kept_layers

    path = make_tiny(tmp_path, layers=6)
    dropped = sorted(set(range(6)) - set(kept_layers(6, 2)))
    trio = Trio(hf.Reference(path), without_layers(path, dropped))
    engine = Engine(path, amateurs={"amateur": "drop:2"})
    prompt = list(range(20, 70))
    case = aided(prompt, {"method": "contrastive"}, trio)
    (output,) = run(engine, [(case, order("contrastive", None))])
    assert mismatches([case], [list(output.outputs[0].token_ids)]) == []
    assert case.expected.tokens != trio.greedy(prompt, None, TOKENS).tokens
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    (amateur,) = runner.model.divserve_amateurs.models
    own = {id(module) for module in runner.model.modules()}
    apart = {type(m).__name__ for m in amateur.modules() if id(m) not in own}
    assert not any(list(m.parameters(recurse=False)) for m in amateur.modules() if id(m) not in own)
    assert "Attention" in apart
    assert not apart & {"QKVParallelLinear", "MergedColumnParallelLinear", "RMSNorm"}
    engine.close()


@pytest.mark.parametrize(
    ("layers", "dropped", "kept"),
    [
        (30, 4, [*range(18), *range(22, 30)]),
        (30, 28, [0, 29]),
        (6, 2, [0, 1, 2, 5]),
        (3, 1, [0, 2]),
    ],
)
def test_the_block_that_is_left_out(layers: int, dropped: int, kept: list[int]) -> None:
    from divserve.engine.models.drop import kept_layers

    assert kept_layers(layers, dropped) == kept
