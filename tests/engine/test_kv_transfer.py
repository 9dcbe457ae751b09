"""Token identity where a KV connector gives the rows of a group their keys and values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.request import RequestStatus

from tests.engine.cases import Case, mismatches, order_of, run
from tests.support import hf
from tests.support.engine import Engine, random_prompt
from tests.support.hf import Reference
from tests.support.kv_store import STORE, configured
from tests.support.models import TINY_VOCAB
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only

pytestmark = [pytest.mark.long, cpu_only("two engines of a test share this process's memory")]

LENGTHS = (
    ("cad", 33, 20), ("adacad", 64, 33), ("cfg", 65, 40), ("instructive", 97, 129),
    ("coiecd", 129, 1), ("adacad", 200, 65), ("cad", 1, 70), ("cfg", 34, 66), ("vdgd", 90, 50),
    ("", 33, 0), ("", 65, 0), ("", 129, 0), ("", 200, 0),
)  # fmt: skip
"""Method, tokens of the prompt, tokens of the guide; blocks have 32."""
MODES: dict[str, dict[str, Any]] = {
    "all but one token": {"short": 1},
    "all but two": {"short": 2},
    "whole blocks": {"short": 1, "whole_blocks": True},
    "later, all": {"waits": True, "short": 0},
    "later, all but one": {"waits": True, "short": 1, "later": 2, "steps": 3},
    "later, all but two": {"waits": True, "short": 2, "steps": 1},
    "later, whole blocks": {"waits": True, "short": 1, "whole_blocks": True},
    "the last block fails": {"short": 2, "fails": "blocks", "attempts": 9},
    "the last block fails later": {"waits": True, "short": 2, "fails": "blocks", "attempts": 9},
    "all of it fails later": {"waits": True, "short": 2, "fails": "request", "attempts": 9},
}


@pytest.fixture(scope="module")
def cases(tiny_reference: Reference) -> list[Case]:
    rng = random.Random(7)
    found = []
    for method, length, guide_length in LENGTHS:
        prompt = random_prompt(rng, length, TINY_VOCAB)
        text = random_prompt(rng, guide_length, TINY_VOCAB)
        guide = text if method else None
        expected = (
            grounded(tiny_reference, prompt, text)
            if method == "vdgd"
            else tiny_reference.greedy(prompt, guide, method, 12)
        )
        found.append(Case(prompt, guide, method, 12, expected))
    rng.shuffle(found)
    return found


def grounded(reference: Reference, prompt: list[int], text: list[int]) -> hf.Answer:
    vector = reference.grounding(text)
    return reference.stacked(prompt, [], lambda z: hf.vdgd(z[0], vector), 12)


@pytest.fixture(scope="module", params=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    STORE.reset()
    engine = Engine(
        tiny,
        asynchronous=request.param == "async",
        kv_transfer_config=configured(kv_load_failure_policy="recompute"),
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def kept(engine: Engine, cases: list[Case]) -> list[Any]:
    """What the connector keeps after all requests have run once."""
    assert mismatches(cases, run(engine, cases)) == []
    idle(engine)
    return [*STORE.kept]


def idle(engine: Engine) -> None:
    """Nothing is left, in the connector either."""
    for _ in range(6):
        engine.core.step()
    assert set(engine.leftovers().values()) == {0}


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_the_reference(
    engine: Engine, cases: list[Case], kept: list[Any], mode: str
) -> None:
    assert engine.core.reset_prefix_cache()
    STORE.reset(**MODES[mode], kept=kept)
    assert mismatches(cases, run(engine, cases)) == []
    idle(engine)
    rows = [name for name, tokens in STORE.loaded.items() if tokens]
    # A synchronous load that leaves a held row only its last token is not made.
    least = {"all but one token": 0, "whole blocks": 3}.get(mode, 5)
    assert sum("~guide" in name for name in rows) >= least
    assert sum("~" not in name for name in rows) >= 4 + least
    assert not any("~grounding" in name for name in rows)
    if "attempts" in MODES[mode]:
        assert STORE.attempts < 9


def test_a_storm_leaves_nothing(engine: Engine, cases: list[Case], kept: list[Any]) -> None:
    """Loads, failures and aborts in any state."""
    rng = random.Random(3)
    assert engine.core.reset_prefix_cache()
    STORE.reset(waits=True, short=0, later=1, steps=3, fails="blocks", attempts=20, kept=kept)
    for number in range(60):
        case = rng.choice(cases)
        params = SamplingParams(
            temperature=0,
            max_tokens=rng.randrange(1, 20),
            detokenize=False,
            ignore_eos=True,
            extra_args=order_of(case),
        )
        engine.core.add_request(str(number), {"prompt_token_ids": case.prompt}, params)
        engine.core.step()
        if rng.random() < 0.4:
            alive = sorted(engine.scheduler.requests)
            engine.scheduler.finish_requests(
                [rng.choice(alive).partition("~")[0]], RequestStatus.FINISHED_ABORTED
            )
        if number == 30:
            engine.core.reset_prefix_cache()
            STORE.waits, STORE.short = False, 1
    while engine.scheduler.requests:
        engine.core.step()
    idle(engine)
    record(
        Row(
            "transfer",
            f"`--kv-transfer-config`, {'a' if engine.asynchronous else ''}synchronous scheduling",
            "9 guided and 4 plain; hits of all lengths, loaded at once or later, failures, aborts",
            "tiny Llama, float32, V1, CPU, a connector of the tests",
            "Hugging Face float32, token by token",
        )
    )


def test_a_prefill_elsewhere(tiny: Path, cases: list[Case]) -> None:
    """One instance reads both texts for one token; another loads both and decodes."""
    STORE.reset()
    prefill = Engine(tiny, kv_transfer_config=configured(kv_role="kv_producer"))
    short = [
        (case.prompt, SamplingParams(temperature=0, max_tokens=1, extra_args=order_of(case)))
        for case in cases
    ]
    firsts = [list(output.outputs[0].token_ids) for output in prefill.generate(short)]
    assert firsts == [case.expected.tokens[:1] for case in cases]
    idle(prefill)
    prefill.close()
    decode = Engine(tiny, kv_transfer_config=configured(kv_role="kv_consumer"))
    STORE.waits, STORE.short = True, 0
    assert mismatches(cases, run(decode, cases)) == []
    idle(decode)
    decode.close()
    both = [name for name in STORE.loaded if f"{name}~guide" in STORE.loaded]
    assert len(both) == 5
    record(
        Row(
            "transfer",
            "prefill and decoding in two instances",
            "9 guided and 4 plain; both texts of five pairs loaded in full",
            "tiny Llama, float32, V1, CPU, a connector of the tests",
            "Hugging Face float32, token by token",
        )
    )
