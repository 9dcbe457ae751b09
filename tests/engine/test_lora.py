"""Token identity with LoRA adapters: on the primary, on both rows, and on the guide alone.

The reference has the adapters merged into the weights, in float32.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from divserve.engine.order import Order
from divserve.engine.scheduler.governor import OPTION
from tests.engine.cases import NEAR_TIE
from tests.engine.test_adapters import packed
from tests.support.adapters import RANK, AdapterReference, make_adapter
from tests.support.drafter import Drafter, speculative_config
from tests.support.engine import Engine, order, random_prompt, stacked
from tests.support.hf import Reference
from tests.support.hf_models import Trio
from tests.support.models import TINY_VOCAB, make_tiny
from tests.support.models_page import Row, record
from tests.support.verified import Verified

TOKENS = 12
LENGTHS = ((33, 20), (64, 33), (65, 40), (97, 129), (129, 1), (200, 65), (5, 5))
"""Tokens of the prompt and of the guide."""
CASES: list[tuple[str, str, str | None, bool]] = [
    ("", "", None, False), ("", "a", None, False), ("", "b", None, False),
    ("cad", "", None, False), ("adacad", "a", None, False), ("cfg", "b", None, False),
    ("cad", "a", "", True), ("adacad", "a", "", True), ("cfg", "b", "", True),
    ("cad", "", "a", True), ("cad", "a", "", False), ("instructive", "b", "", False),
    ("instructive", "", "b", False), ("cad", "a", "b", True), ("coiecd", "b", "a", False),
]  # fmt: skip
"""Method, adapter of the prompt, that of the guide (None: the same), and whether the guide has the
same text as the prompt. The served model alone is ""."""


def margins(answer: Any) -> list[float]:
    """Gap between the two best guided logits at each step."""
    best = [
        sorted((one.logprob for one in step.values()), reverse=True) for step in answer.logprobs
    ]
    return [first - second for first, second, *_ in best]


@dataclass
class Case:
    method: str
    own: str
    streams: list[tuple[str, list[int]]]


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: Any) -> dict[str, Path]:
    """Of the adapters, by name."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(tiny, root / name, i) for i, name in enumerate("ab")}


@pytest.fixture(scope="module")
def reference(tiny: Path, folders: dict[str, Path]) -> AdapterReference:
    models = {name: path / "merged" for name, path in folders.items()}
    return AdapterReference({"": tiny, **models})


@pytest.fixture(scope="module")
def cases(reference: AdapterReference) -> list[tuple[Case, Any]]:
    """Each with the reference's answer."""
    rng, found = random.Random(3), []
    for i, (method, own, other, same) in enumerate(CASES):
        length, guide_length = LENGTHS[i % len(LENGTHS)]
        prompt = random_prompt(rng, length, TINY_VOCAB)
        guide = prompt if same else random_prompt(rng, guide_length, TINY_VOCAB)
        streams = [(own, prompt)]
        if method:
            streams.append((own if other is None else other, guide))
        found.append((Case(method, own, streams), reference.greedy(streams, method, TOKENS)))
    return found


MODES = {
    "two": "LoRA, --max-loras 2",
    "one": "LoRA, --max-loras 1",
    "tight-async": "LoRA, --max-loras 2, asynchronous, small KV cache",
}
ENGINES = [
    pytest.param({"max_loras": 2}, id="two"),
    pytest.param({"max_loras": 1}, id="one", marks=pytest.mark.long),
    pytest.param(
        {"max_loras": 2, "blocks": 18, "max_model_len": 320, "asynchronous": True},
        id="tight-async",
        marks=pytest.mark.long,
    ),
]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Engine]:
    made = Engine(tiny, enable_lora=True, max_lora_rank=RANK, max_cpu_loras=4, **request.param)
    yield made
    made.close()


def requests_of(folders: dict[str, Path]) -> dict[str, LoRARequest | None]:
    """By the name of the adapter."""
    named = enumerate(folders.items(), start=1)
    return {"": None, **{name: LoRARequest(name, i, str(path)) for i, (name, path) in named}}


def parameters(case: Case, requests: dict[str, LoRARequest | None]) -> SamplingParams:
    extra = None
    if case.method:
        (own, _), (adapter, guide) = case.streams
        asked = Order.of(SamplingParams(extra_args=order(case.method, guide)))
        assert asked is not None
        if own != adapter:
            spec = replace(asked.spec, adapters=(packed(requests[adapter]),))
            asked = replace(asked, spec=spec)
        extra = asked.pack()
    return SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        ignore_eos=True,
        detokenize=False,
        logprobs=2,
        extra_args=extra,
    )


def check(
    engine: Engine, cases: list[tuple[Case, Any]], requests: dict[str, LoRARequest | None]
) -> None:
    """All in one batch; nothing is left."""
    outputs = engine.generate(
        [(case.streams[0][1], parameters(case, requests)) for case, _ in cases],
        lora_request=[requests[case.own] for case, _ in cases],
    )
    for (case, expected), output in zip(cases, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        ties = (i for i, margin in enumerate(expected.margins) if margin < NEAR_TIE)
        sure = next(ties, TOKENS)
        names = [name for name, _ in case.streams]
        assert tokens[:sure] == expected.tokens[:sure], (case.method, names)
        assert len(tokens) == TOKENS
        found = margins(output.outputs[0])[:sure]
        assert found == pytest.approx(expected.margins[:sure], rel=1e-3, abs=2e-3)
    assert set(engine.leftovers().values()) == {0}


def test_each_row_is_read_with_its_adapter(
    request: pytest.FixtureRequest,
    engine: Engine,
    cases: list[tuple[Case, Any]],
    folders: dict[str, Path],
) -> None:
    """All in one batch; the second round hits the prefix cache. The gap between the two best
    tokens is right, too."""
    most = engine.scheduler.lora_config.max_loras
    requests = requests_of(folders)
    fitting = [
        (case, expected)
        for case, expected in cases
        if len({name for name, _ in case.streams if name}) <= most
    ]
    for _ in range(2):
        check(engine, fitting, requests)
    record(
        Row(
            "adapters",
            MODES[request.node.callspec.id],
            "two rounds; adapters on both rows, on the guide alone and on the prompt alone",
            "tiny Llama, float32, V1, CPU, prefix cache hits",
            "transformers, float32, merged weights",
            why="compared: the tokens, and the gap between the two best",
        )
    )


@pytest.mark.long
def test_drafts_are_read_with_the_adapters_of_each_row(
    tiny: Path,
    cases: list[tuple[Case, Any]],
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = [(case.streams[0][1], expected.tokens) for case, expected in cases]
    monkeypatch.setattr(Drafter, "answers", known)
    engine = Engine(
        tiny,
        enable_lora=True,
        max_lora_rank=RANK,
        max_loras=2,
        speculative_config=speculative_config(),
        additional_config={OPTION: False},
    )
    verified = Verified(engine)
    for _ in range(2):
        check(engine, cases, requests_of(folders))
    assert verified.uneven == []
    assert verified.accepted > len(cases) * TOKENS // 2
    assert verified.rejected > len(cases)
    engine.close()


@pytest.mark.long
def test_a_model_beside_keeps_its_own_weights(
    tiny: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Adapters are the served model's: an amateur of the same architecture gets none of them."""
    amateur = make_tiny(tmp_path, seed=1)
    rng, body, requests = random.Random(5), {"method": "contrastive"}, requests_of(folders)
    prompts = [random_prompt(rng, length, TINY_VOCAB) for length in (33, 64, 9)]
    names = ["", "a", "b"]
    expected = []
    for name, prompt in zip(names, prompts, strict=True):
        served = Reference(folders[name] / "merged" if name else tiny)
        expected.append(Trio(served, Reference(amateur).model).greedy(prompt, body, TOKENS))
    params = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=2,
        extra_args=stacked([body], [None]),
    )  # fmt: skip
    engine = Engine(
        tiny, amateurs={"amateur": str(amateur)}, enable_lora=True, max_lora_rank=RANK, max_loras=2
    )
    try:
        outputs = engine.generate(
            [(prompt, params) for prompt in prompts], lora_request=[requests[n] for n in names]
        )
    finally:
        engine.close()
    for answer, output in zip(expected, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == answer.tokens
        assert margins(output.outputs[0]) == pytest.approx(answer.margins, rel=1e-3, abs=2e-3)


def test_the_model_of_the_guide_matters(
    reference: AdapterReference, cases: list[tuple[Case, Any]]
) -> None:
    """Else the test above could not tell the models of the guides apart."""
    for case, expected in cases:
        if len({name for name, _ in case.streams}) == 2:
            streams = [(case.own, ids) for _, ids in case.streams]
            same = reference.greedy(streams, case.method, TOKENS)
            assert same.margins != pytest.approx(expected.margins, abs=0.1)
