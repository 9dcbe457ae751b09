"""Drafts on models with windows, chunks and experts: a rejected draft loses nothing.

vLLM gives back the blocks behind a window, by how far a request has come; drafts that are rejected
take it back. As in `test_architectures`, every log-prob is compared with that of a reference that
is given the tokens of the answer, and the second round hits the prefix cache.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from divserve.engine.scheduler.governor import OPTION
from tests.engine import test_architectures
from tests.engine.test_architectures import (
    CHUNK,
    CONTEXT,
    ERROR,
    LENGTHS,
    TIGHT,
    TOGETHER,
    Check,
    made_cases,
    outputs_of,
    tight_blocks,
)
from tests.support import forced
from tests.support.architectures import make, named
from tests.support.drafter import Drafter, speculative_config
from tests.support.engine import Engine, counted
from tests.support.verified import Verified

pytestmark = pytest.mark.long

inspected_here = test_architectures.inspected_here
TITLES = ("Gemma 3", "gpt-oss", "Llama 4 with chunked attention", "Qwen3-MoE")


def occupy(engine: Engine, left: int) -> None:
    """Leaves so many blocks of the KV cache."""
    engine.scheduler.reset_prefix_cache()
    pool = engine.scheduler.kv_cache_manager.block_pool
    pool.get_new_blocks(engine.free_blocks() - left)
    engine.total_blocks = engine.free_blocks()


@pytest.mark.parametrize("title", TITLES)
def test_answers_are_those_of_the_reference(
    title: str, tmp_path: Path, inspected_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = named(title)
    path = make(architecture, tmp_path)
    engine = Engine(
        path,
        speculative_config=speculative_config(),
        additional_config={OPTION: False},
        max_model_len=CONTEXT,
        max_num_batched_tokens=CHUNK,
        **architecture.engine,
    )
    lengths = TOGETHER if engine.scheduler.block_size == 64 else LENGTHS
    cases = made_cases(lengths, TIGHT, jumps=True)
    monkeypatch.setattr(Drafter, "drafts", False)
    alone: list[Any] = [output.outputs[0] for output in outputs_of(engine, cases)]
    answers = [(c.prompt, list(a.token_ids)) for c, a in zip(cases, alone, strict=True)]
    monkeypatch.setattr(Drafter, "answers", answers)
    monkeypatch.setattr(Drafter, "drafts", True)
    verified = Verified(engine)
    check = Check(forced.Forced(path), ERROR[architecture.dtype])
    check(engine, lengths, TIGHT)
    assert check.cached
    preemptions = counted(engine.scheduler, "_preempt_request")
    occupy(engine, tight_blocks(engine, lengths) - 1)
    check(engine, lengths, TIGHT)
    assert preemptions
    assert verified.uneven == []
    # Half of an answer, in each of four rounds.
    assert verified.accepted > 2 * len(cases) * TIGHT
    assert verified.rejected > len(cases)
    assert [list(o.outputs[0].token_ids) for o in outputs_of(engine, cases)] == [
        tokens for _, tokens in answers
    ]
    engine.close()
    gc.collect()
