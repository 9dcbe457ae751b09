"""Many prompts for every method of one engine, greedily, against Hugging Face float32."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from divserve.decoding import METHODS
from tests.engine.cases import NEAR_TIE, Case, mismatches, run
from tests.support.engine import Engine, random_prompt, stacked
from tests.support.hf import Answer, Reference, combine, edt, vdgd
from tests.support.hf_batch import greedy_batch
from tests.support.hf_models import contrast
from tests.support.look_back import problems, recorded
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.platform import ON_GPU

pytestmark = pytest.mark.gpu

GROUPS, EACH, TOKENS = 20, 10, 6
SOME = 5
SURE = 0.85 if ON_GPU else 0.95
"""Share of the answers without a near-tie in the reference: at least 0.90 and 0.98."""
AIDED = ("contrastive", "proxy_tuning", "dexperts")
ALONE = ("entropy_temperature", *AIDED)
RULE = {"threshold": 1.5, "k": 5}
OF_ONE_ENGINE = [name for name in METHODS if name not in {"entropy_switch", "look_back"}]
"""`test_look_back` below has its own engine; switching takes two (`test_switching`)."""


@dataclass
class Group:
    """Prompts of one length, and their guides of another length."""

    prompts: list[list[int]]
    guides: list[list[int]]


@dataclass
class Models:
    """The served model and its amateurs, whose vocabularies are padded differently."""

    served: Reference
    amateurs: dict[str, Path]
    references: list[Any]


@pytest.fixture(scope="module")
def models(tiny_reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Models:
    sizes = {"amateur": TINY_VOCAB - 24, "tuned": TINY_VOCAB + 8}
    paths = {
        name: make_tiny(tmp_path_factory.mktemp(name), vocab_size=size, seed=size)
        for name, size in sizes.items()
    }
    load = AutoModelForCausalLM.from_pretrained
    references = [load(path, dtype=torch.float32).eval() for path in paths.values()]
    return Models(tiny_reference, paths, references)


@pytest.fixture(scope="module")
def engine(tiny: Path, models: Models) -> Iterator[Engine]:
    amateurs = {name: str(path) for name, path in models.amateurs.items()}
    room: dict[str, Any] = {
        "max_num_seqs": 128,
        "max_num_batched_tokens": 1024,
        "max_model_len": 256,
    }
    engine = Engine(tiny, amateurs=amateurs, look_back=True, **room)
    yield engine
    engine.close()


@pytest.fixture(
    scope="module",
    params=[slice(SOME), pytest.param(slice(SOME, None), marks=pytest.mark.long)],
    ids=["some", "the others"],
)
def groups(request: pytest.FixtureRequest) -> list[Group]:
    """Half of the guides are the ends of their prompts, as if a document were left out."""
    rng = random.Random(11)
    found = []
    for i in range(GROUPS):
        length, shorter = rng.choice([1, 31, 32, 33, rng.randrange(2, 120)]), rng.randrange(1, 80)
        prompts = [random_prompt(rng, length, TINY_VOCAB) for _ in range(EACH)]
        guides = [
            prompt[-shorter:] if i % 2 else random_prompt(rng, shorter, TINY_VOCAB)
            for prompt in prompts
        ]
        found.append(Group(prompts, guides))
    chosen: list[Group] = found[request.param]
    return chosen


def expected(models: Models, method: str, group: Group) -> list[Answer]:
    model = models.served.model
    streams = [(model, group.prompts)]
    if method == "entropy_temperature":
        return greedy_batch(streams, lambda _, z: edt(z[0]), TOKENS)
    if method == "vdgd":
        grounded = [models.served.grounding(guide) for guide in group.guides]
        return greedy_batch(streams, lambda i, z: vdgd(z[0], grounded[i]), TOKENS)
    if method in AIDED:
        streams += [(amateur, group.prompts) for amateur in models.references]
        shared = min(amateur.config.vocab_size for amateur in models.references)

        def contrasted(_: int, z: list[torch.Tensor]) -> torch.Tensor:
            return contrast({"method": method}, *(row[:shared] for row in z))

        return greedy_batch(streams, contrasted, TOKENS)
    streams.append((model, group.guides))
    return greedy_batch(streams, lambda _, z: combine(method, *z), TOKENS)


@pytest.mark.parametrize("method", OF_ONE_ENGINE)
def test_many_prompts(engine: Engine, models: Models, groups: list[Group], method: str) -> None:
    cases = []
    for group in groups:
        answers = expected(models, method, group)
        for prompt, guide, answer in zip(group.prompts, group.guides, answers, strict=True):
            second = None if method in ALONE else guide
            cases.append(Case(prompt, second, method, TOKENS, answer))
    assert mismatches(cases, run(engine, cases)) == []
    assert set(engine.leftovers().values()) == {0}
    # Near-ties of the reference end a comparison; there are hardly any.
    sure = sum(min(case.expected.margins) >= NEAR_TIE for case in cases)
    assert sure > SURE * len(cases)


def test_look_back(engine: Engine, models: Models, groups: list[Group]) -> None:
    """Candidates are drawn at random, so any draw must be consistent."""
    from vllm import SamplingParams

    rows = recorded(engine)
    prompts = [prompt for group in groups for prompt in group.prompts]
    params = SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        extra_args=stacked([{"method": "look_back", **RULE}], [None]),
    )
    outputs = engine.generate([(prompt, params) for prompt in prompts])
    alarms = 0
    for output, prompt in zip(outputs, prompts, strict=True):
        seen, tokens = rows[output.request_id], list(output.outputs[0].token_ids)
        assert problems(models.served.model, prompt, tokens, seen, RULE) == []
        alarms += sum(row.state != 0 for row in seen)
    assert alarms > len(prompts) / 4
    assert set(engine.leftovers().values()) == {0}
