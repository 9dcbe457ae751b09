"""Methods that drop tokens beside a grammar or another mask: the kept tokens come first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from divserve.decoding import Program
from divserve.engine.worker.dropped import PENALTY, DroppedTokens, forbids_tokens
from divserve.engine.worker.slots import Groups
from divserve.engine.worker.staging import Staging
from tests.engine.test_stages import CPU, PLAIN, VOCAB, Worker, pair

MASKS: dict[str, dict[str, Any]] = {
    "grammar": {"structured_outputs": StructuredOutputsParams(regex="[a-z]+")},
    "allowed_token_ids": {"allowed_token_ids": [3, 4]},
    "bad_words": {"bad_words": ["no"]},
    "min_tokens": {"min_tokens": 2},
}
DROPPING = {
    "contrastive": Program(alpha=0.5, log_plausibility=math.log(0.5)),
    "nucleus": Program(alpha=0.5, top_p=0.4),
    "uscd": Program(form=3.0, alpha=0.7, primary_weight=1.0, min_prob=0.9),
    "with a temperature": Program(alpha=0.5, log_plausibility=-0.3, kl_rate=3.0),
}


def guided(program: Program, **params: Any) -> torch.Tensor:
    """The primary's guided logits ``[V]`` in a batch of two groups and a plain row."""
    worker = Worker()
    worker.params = {"a": params}
    worker.observe(a=pair("a", program=program), b=pair("b", program=program))
    return worker.step("b", "a~guide", "x", "a", "b~guide")[1][3]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("program", DROPPING.values(), ids=DROPPING.keys())
def test_kept_tokens_first_then_the_primarys_order(program: Program, mask: dict[str, Any]) -> None:
    free, masked = guided(program), guided(program, **mask)
    raw = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0))[3]
    dropped = free == -math.inf
    assert 0 < int(dropped.sum()) < VOCAB
    assert torch.equal(masked[~dropped], free[~dropped])
    expected = raw[dropped] - raw.max() + free[~dropped].min() - PENALTY
    torch.testing.assert_close(masked[dropped], expected, rtol=0, atol=2e-3)
    assert masked[dropped].argsort().tolist() == raw[dropped].argsort().tolist()
    # Not drawn while a kept token is allowed, however hot the request is.
    some = torch.cat((masked[~dropped].min()[None], masked[dropped])) / 50
    assert some.softmax(-1)[1:].count_nonzero() == 0


def test_only_rows_that_drop_and_forbid_change() -> None:
    mask = MASKS["allowed_token_ids"]
    contrast = Program(alpha=0.5)
    assert torch.equal(guided(contrast, **mask), guided(contrast))
    # The other group drops tokens too, but forbids none.
    worker = Worker()
    worker.params = {"a": mask}
    program = DROPPING["contrastive"]
    worker.observe(a=pair("a", program=program), b=pair("b", program=program))
    logits = worker.step("b", "a~guide", "x", "a", "b~guide")[1]
    assert bool((logits[0] == -math.inf).any())
    assert bool(logits[1:4].isfinite().all())


def test_a_vocabulary_limit_stays() -> None:
    """Tokens that the next engine lacks are forbidden, not only dropped."""
    worker = Worker()
    worker.params = {"a": MASKS["grammar"]}
    worker.observe(a=pair("a", program=DROPPING["contrastive"], vocab=5))
    logits = worker.step("a", "a~guide")[1][0]
    assert (logits == -math.inf).tolist() == [token >= 5 for token in range(VOCAB)]


def test_what_the_model_rules_out_stays() -> None:
    """−inf in the raw logits, no token at all, and NaN, each in its own row, in bfloat16."""
    stage, staging, count = DroppedTokens(), Staging(CPU), 3
    params = SamplingParams(min_tokens=1)
    for slot in range(count):
        stage.add(slot, replace(PLAIN, program=DROPPING["contrastive"]), params)
    rows = torch.arange(count)[:, None].expand(-1, 3).numpy()
    names = rows[:, 0].astype(object)
    stage.lay_out(Groups(rows[:, 0], names, rows), staging)
    inf, nan = math.inf, math.nan
    raw = torch.tensor([[-inf, 1, 0], [-inf, -inf, -inf], [nan, 2, 1]], dtype=torch.bfloat16)
    out = torch.tensor([[-inf, 1, -inf], [-inf, -inf, -inf], [nan, nan, -inf]])
    stage.apply(out, stage.raw(raw))
    assert out[0].tolist() == [-inf, 1, 0 - PENALTY]
    assert out[1].tolist() == [-inf, -inf, -inf]
    assert out[2].isnan().tolist() == [True, True, False]


def test_which_requests_forbid_tokens() -> None:
    assert not forbids_tokens(SamplingParams())
    assert all(forbids_tokens(SamplingParams(**mask)) for mask in MASKS.values())
