"""Speculative contrastive decoding: the amateur drafts, and the same tokens come out."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from divserve.engine.models.loader import drafting_amateur
from divserve.engine.scheduler.governor import OPTION
from divserve.engine.worker.amateur_drafts import AmateurDrafter
from divserve.errors import StartupError
from divserve.startup.amateur_drafts import DRAFTER, drafts_with_amateur, tell_engine
from divserve.startup.extras import Extras
from tests.engine import test_amateurs
from tests.engine.cases import mismatches
from tests.engine.test_amateurs import greedy, run
from tests.support.engine import Engine, counted, order, random_prompt, stacked
from tests.support.models import TINY_VOCAB, make_tiny

MOST = 3
DRAFTS: dict[str, Any] = {
    "speculative_config": {
        "method": "custom_class",
        "model": DRAFTER,
        "num_speculative_tokens": MOST,
    },
    # All drafts are verified, whatever they cost here.
    "additional_config": {OPTION: False},
}
MODES: dict[str, dict[str, Any]] = {
    "roomy": {},
    "budget of 32 tokens, 5 rows": {"max_num_batched_tokens": 32, "max_num_seqs": 5},
    "tight": {"max_model_len": 256, "blocks": 14},
}
amateur, tuned, trio, cases = (
    test_amateurs.amateur, test_amateurs.tuned, test_amateurs.trio, test_amateurs.cases
)  # fmt: skip


@dataclass
class Counts:
    """Drafts of primaries and plain requests."""

    proposed: int = 0
    accepted: int = 0
    steps: int = 0
    uneven: int = 0
    """Steps in which a guide has not taken its primary's tokens."""


def counts_of(engine: Engine) -> Counts:
    """Counts the drafts of an engine from now on."""
    counts, update = Counts(), engine.scheduler.update_from_output

    def counting(output: Any, made: Any) -> Any:
        def taken(name: str) -> list[int]:
            tokens: list[int] = made.sampled_token_ids[made.req_id_to_index[name]]
            return tokens

        counts.steps += bool(output.num_scheduled_tokens)
        for name, drafts in output.scheduled_spec_decode_tokens.items():
            group = engine.scheduler.groups.get(name)
            if group is not None and group.name != name:
                counts.uneven += taken(name) != taken(group.name)
                continue
            counts.proposed += len(drafts)
            counts.accepted += max(len(taken(name)) - 1, 0)
        return update(output, made)

    engine.scheduler.update_from_output = counting
    return counts


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_a_mixed_batch_equals_the_reference(
    tiny: Path, amateur: Path, tuned: Path, cases: Any, mode: str
) -> None:
    """All methods and plain requests; the second round hits the prefix cache, if it has room."""
    amateurs = {"amateur": str(amateur), "tuned": str(tuned)}
    engine = Engine(tiny, amateurs=amateurs, **DRAFTS, **MODES[mode])
    preempted, counts = counted(engine.scheduler, "_preempt_request"), counts_of(engine)
    for _ in range(2):
        answers = [list(output.outputs[0].token_ids) for output in run(engine, cases)]
        assert mismatches([case for case, _ in cases], answers) == []
        assert set(engine.leftovers().values()) == {0}
    assert counts.uneven == 0
    assert counts.proposed > counts.accepted
    assert bool(preempted) == (mode == "tight")
    engine.close()


@pytest.fixture(scope="module")
def twin(tiny: Path) -> Iterator[Engine]:
    """An engine whose amateur is the served model itself."""
    engine = Engine(tiny, amateurs={"amateur": str(tiny)}, **DRAFTS, max_num_batched_tokens=512)
    yield engine
    engine.close()


@pytest.mark.parametrize("body", [None, {"method": "contrastive"}], ids=["plain", "contrastive"])
def test_an_equal_amateur_is_always_right(twin: Engine, body: dict[str, Any] | None) -> None:
    """A token after the prompt, then five steps of three drafts and a token, across blocks."""
    counts, extra = counts_of(twin), stacked([body], [None]) if body else None
    rng = random.Random(3)
    prompts = [random_prompt(rng, length, TINY_VOCAB) for length in range(25, 33)]
    twin.generate([(prompt, greedy(extra, max_tokens=21)) for prompt in prompts])
    assert counts.accepted == counts.proposed == 5 * MOST * len(prompts)


WAYS: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 3},
    "penalties": {"frequency_penalty": 0.8, "repetition_penalty": 1.3},
    "min_tokens": {"min_tokens": 9, "ignore_eos": False},
    "allowed": {"allowed_token_ids": list(range(5, 40))},
    "drawn with a seed": {"temperature": 1.5, "seed": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_end_as_without_drafts(
    twin: Engine, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CAD, contrastive and plain requests beside each other."""
    rng = random.Random(4)
    prompts = [random_prompt(rng, length, TINY_VOCAB) for length in (1, 30, 40)]
    orders = [order("cad", prompts[0]), stacked([{"method": "contrastive"}], [None]), None]
    asked = [(p, greedy(o, **WAYS[way])) for p, o in zip(prompts, orders, strict=True)]
    counts = counts_of(twin)
    drafted = twin.generate([(prompt, params.clone()) for prompt, params in asked])
    # Seeded requests have drafts here, because the governor, which would drop them, is off.
    assert counts.proposed > 0
    monkeypatch.setattr(
        AmateurDrafter, "propose", lambda self, taken, *_, **__: [[] for _ in taken]
    )
    counts = counts_of(twin)
    plain = twin.generate(asked)
    assert counts.proposed == 0
    if way != "drawn with a seed":
        for one, other in zip(drafted, plain, strict=True):
            assert one.outputs[0].token_ids == other.outputs[0].token_ids
    assert set(twin.leftovers().values()) == {0}


def test_aborts_at_every_step(twin: Engine) -> None:
    rng = random.Random(5)
    prompt = random_prompt(rng, 30, TINY_VOCAB)
    for step in range(6):
        for i, extra in enumerate((order("cad", prompt[:4]), None)):
            twin.core.add_request(f"gone{i}", {"prompt_token_ids": prompt}, greedy(extra))
        for _ in range(step):
            twin.core.step()
        twin.core.abort_request(["gone0", "gone1"])
        assert set(twin.leftovers().values()) == {0}


@pytest.mark.long
def test_drop_with_the_governor(tmp_path: Path) -> None:
    """An amateur of the model's own layers; the governor verifies what it takes to pay."""
    served = make_tiny(tmp_path, layers=6)
    rng = random.Random(6)
    prompts = [random_prompt(rng, length, TINY_VOCAB) for length in (1, 20, 31, 32, 33, 60)]
    orders = [None, stacked([{"method": "contrastive"}], [None]), order("cad", prompts[0])]
    asked = [(p, greedy(o, max_tokens=60)) for p in prompts for o in orders]
    answers = []
    for options in ({}, DRAFTS, DRAFTS | {"additional_config": {}}):
        engine = Engine(served, amateurs={"amateur": "drop:1"}, **options)
        counts = counts_of(engine)
        answers.append([list(o.outputs[0].token_ids) for o in engine.generate(asked)])
        assert set(engine.leftovers().values()) == {0}
        engine.close()
        if options is DRAFTS:
            assert 0 < counts.accepted < counts.proposed
    assert answers[0] == answers[1] == answers[2]


def arguments(given: dict[str, Any] | None, **extras: Any) -> Namespace:
    return Namespace(speculative_config=given, extras=Extras(**extras))


def test_the_method_becomes_one_of_vllms() -> None:
    args = arguments(
        {"method": "amateur", "num_speculative_tokens": 2}, amateurs={"amateur": "drop:4"}
    )
    tell_engine(args)
    assert args.speculative_config == DRAFTS["speculative_config"] | {"num_speculative_tokens": 2}
    assert drafts_with_amateur(SimpleNamespace(**args.speculative_config))
    # The small engine has no amateur.
    args.model = "MODEL"
    assert Extras(small="little").small_arguments(args, "served").speculative_config is None
    for other in (None, {"method": "ngram", "num_speculative_tokens": 2}):
        args = arguments(other, amateurs={})
        tell_engine(args)
        assert args.speculative_config == other


@pytest.mark.parametrize(
    ("given", "amateurs", "message"),
    [
        ({"num_speculative_tokens": 2}, {}, "needs --amateur"),
        ({}, {"amateur": "a"}, "takes num_speculative_tokens"),
        ({"num_speculative_tokens": 2, "model": "b"}, {"amateur": "a"}, "and nothing else"),
    ],
)
def test_what_the_method_does_not_take(
    given: dict[str, Any], amateurs: dict[str, str], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        tell_engine(arguments({"method": "amateur", **given}, amateurs=amateurs))


def test_a_drafter_needs_an_amateur() -> None:
    with pytest.raises(StartupError, match="--amateur"):
        drafting_amateur(nn.Linear(1, 1))
