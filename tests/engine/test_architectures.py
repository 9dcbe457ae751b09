"""Token identity on other architectures than Llama: windows, chunks, experts, recurrent state.

Each is served twice: with room for all requests, and asynchronously with a KV cache so small that
requests are preempted. Both engines run the same batch two times; the second time hits the prefix
cache. Every log-prob is compared with that of a reference that is given the tokens of the answer:
a few wrong positions of the cache need not change which token is the best.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from divserve.engine.scheduler.blocks import Kind
from tests.engine.cases import Case, order_of
from tests.support import forced
from tests.support.architectures import ARCHITECTURES, NOT_JUDGED, Architecture, make
from tests.support.engine import Engine, counted, random_prompt
from tests.support.hf import Answer
from tests.support.models import TINY_VOCAB
from tests.support.models_page import Row, record

LENGTHS = (
    ("cad", 33, 20), ("adacad", 64, 33), ("cfg", 65, 40), ("instructive", 97, 129),
    ("coiecd", 129, 1), ("adacad", 200, 65),
    ("", 33, 0), ("", 65, 0), ("", 129, 0), ("", 200, 0),
)  # fmt: skip
"""Method, tokens of the prompt, tokens of the guide; 1 modulo 32 is where a hit leaves only the
held token."""
TOGETHER = (
    ("cad", 55, 56), ("adacad", 57, 1), ("", 58, 0), ("cfg", 59, 54), ("instructive", 60, 70),
    ("coiecd", 61, 58), ("", 62, 0), ("", 63, 0), ("adacad", 65, 33), ("", 97, 0),
)  # fmt: skip
"""Likewise, for blocks of 64 tokens: many rows need another one at about the same time."""
ROOMY, TIGHT = 12, 40
"""Tokens of an answer. In a tight cache the rows have to grow."""
CONTEXT, CHUNK = 320, 64
"""Longest context and largest step where the cache is tight, tokens."""
ERROR = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest difference of a log-prob, nats. Wrong positions of a cache make 0.07 to 5 in float32; in
bfloat16 stock vLLM alone makes 0.16, which contrasts double."""


def without_pictures() -> list[str]:
    """What text models import only to read pictures, if it is not installed."""
    if find_spec("torchvision") is not None:
        return []
    parts = ["torchvision", "transforms", "v2", "functional"]
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


@pytest.fixture(scope="module")
def inspected_here() -> Iterator[None]:
    """vLLM looks at the classes of a model in a new process, which takes longer than the tests."""
    from vllm.model_executor.models import registry

    with pytest.MonkeyPatch.context() as patch:
        for name in without_pictures():
            patch.setitem(sys.modules, name, MagicMock())
        patch.setattr(registry, "_run_in_subprocess", lambda look: look())
        yield


Lengths = Sequence[tuple[str, int, int]]


def made_cases(lengths: Lengths, tokens: int, *, jumps: bool) -> list[Case]:
    """The batch; where nothing may jump with rounding, `cad` takes the place of `coiecd`."""
    rng = random.Random(7)
    cases = [
        Case(
            random_prompt(rng, length, TINY_VOCAB),
            random_prompt(rng, guide, TINY_VOCAB) if method else None,
            "cad" if method == "coiecd" and not jumps else method,
            tokens,
            Answer(),
        )
        for method, length, guide in lengths
    ]
    rng.shuffle(cases)
    return cases


def outputs_of(engine: Engine, cases: list[Case]) -> list[Any]:
    from vllm import SamplingParams

    asked = [
        SamplingParams(
            temperature=0, max_tokens=case.max_tokens, ignore_eos=True, detokenize=False,
            logprobs=5, extra_args=order_of(case),
        )
        for case in cases
    ]  # fmt: skip
    return engine.generate([(case.prompt, one) for case, one in zip(cases, asked, strict=True)])


def tight_blocks(engine: Engine, lengths: Lengths) -> int:
    """Blocks of a KV cache that just holds the longest group of an asynchronous engine.

    Args:
        engine: with a larger cache.
        lengths: of the batch.
    """
    kinds = []
    for manager in engine.scheduler.kv_cache_manager.coordinator.single_type_managers:
        kind, spec = Kind.of(manager, most_steps=2), manager.kv_cache_spec
        if hasattr(spec, "max_admission_blocks_per_request"):
            cap = spec.max_admission_blocks_per_request(2 * CHUNK, CONTEXT)
            kind = replace(kind, cap=cap)
        kinds.append(kind)

    def held(length: int) -> int:
        return sum(kind.held(length) for kind in kinds)

    pairs = (
        held(prompt + TIGHT) + (held(guide + TIGHT) if method else 0)
        for method, prompt, guide in lengths
    )
    return max(held(CONTEXT), *pairs) + 1


class Check:
    """Runs the batch in two rounds and compares all answers.

    Args:
        reference: what to compare with.
        error: how much a log-prob may differ, nats.
    """

    def __init__(self, reference: forced.Reference, error: float) -> None:
        self._reference, self._error = reference, error
        self.worst = 0.0
        """The largest difference so far, nats."""
        self.cached = False
        """Whether any prompt has been found in the prefix cache."""

    def __call__(self, engine: Engine, lengths: Lengths, tokens: int) -> None:
        cases = made_cases(lengths, tokens, jumps=self._error < 0.01)
        for _ in range(2):
            for case, output in zip(cases, outputs_of(engine, cases), strict=True):
                (answer,) = output.outputs
                assert len(answer.token_ids) == tokens
                log_probs = forced.expected(self._reference, case, list(answer.token_ids))
                error = forced.difference(answer, log_probs)
                assert error < self._error, (case.method, len(case.prompt))
                self.worst = max(self.worst, error)
                self.cached |= bool(output.num_cached_tokens)
            assert set(engine.leftovers().values()) == {0}


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(one, id=one.title, marks=[] if one.fast else [pytest.mark.long])
        for one in ARCHITECTURES
    ],
)
def test_every_answer_is_that_of_the_reference(
    architecture: Architecture, tmp_path: Path, inspected_here: None
) -> None:
    with ExitStack() as opened:

        def engine(**options: Any) -> Engine:
            made = Engine(path, **architecture.engine, **options)
            opened.callback(made.close)
            return made

        path = make(architecture, tmp_path)
        reference: forced.Reference = forced.Forced(path)
        if architecture.by_stock:
            reference = forced.Stock(engine(lockstep=False, max_logprobs=-1))
        check = Check(reference, ERROR[architecture.dtype])
        # Prompts are read at once here, and in chunks there.
        roomy = engine(max_num_batched_tokens=512)
        check(roomy, LENGTHS, ROOMY)
        lengths = TOGETHER if roomy.scheduler.block_size == 64 else LENGTHS
        blocks = tight_blocks(roomy, lengths)
        tight = engine(
            asynchronous=True, blocks=blocks, max_model_len=CONTEXT, max_num_batched_tokens=CHUNK
        )
        preemptions = counted(tight.scheduler, "_preempt_request")
        check(tight, lengths, TIGHT)
        grows = any(kind.size < CONTEXT for kind in tight.scheduler.blocks.kinds)
    gc.collect()
    assert bool(preemptions) == grows
    hits = "prefix cache hits" if check.cached else "no prefix cache hits"
    record(
        Row(
            "architecture",
            architecture.title,
            f"two rounds; two rounds, asynchronous and {'preempting' if grows else 'waiting'}",
            f"{architecture.dtype}, V1, CPU, {hits}",
            reference.name,
            check.worst,
            architecture.remark,
        )
    )


@pytest.mark.parametrize("title", NOT_JUDGED)
def test_what_cannot_be_judged_says_why(title: str) -> None:
    assert title not in {one.title for one in ARCHITECTURES}
    record(Row("architecture", title, why=NOT_JUDGED[title]))
