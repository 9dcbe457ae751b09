"""Answers behind scored texts, as `echo` with `logprobs` asks for: with drafts and without."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from divserve.decoding import Read
from divserve.engine.reported import Report
from divserve.engine.scheduler.governor import OPTION
from tests.engine import test_reading
from tests.engine.test_reading import CLOSE, Case, check
from tests.support.drafter import Drafter, speculative_config
from tests.support.engine import Engine, order
from tests.support.scored import differences

pytestmark = pytest.mark.gpu

cases = test_reading.cases
TOKENS = 12
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
DRAFTS = {"speculative_config": speculative_config(), "additional_config": {OPTION: False}}


def answered(case: Case, scored: bool) -> tuple[list[int], Any]:
    """A request for an answer behind the text, with a guide that changes nothing or without."""
    prompt, params = case.request()
    if not scored:
        guide = None if case.guide is None else order("cad", case.guide + case.text, alpha=0)
        params = SamplingParams(detokenize=False, extra_args=guide)
    for name, value in SETTINGS.items():
        setattr(params, name, value)
    return prompt, params


@pytest.mark.parametrize(
    "options", [{}, {"asynchronous": True}, DRAFTS], ids=["sync", "async", "drafts"]
)
def test_answers_behind_texts(
    tiny: Path, cases: list[Case], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what they are without the texts being scored; figures come with the first token."""
    engine = Engine(tiny, max_num_seqs=48, **options)
    if options is DRAFTS:
        check(cases, engine.generate([case.request() for case in cases]))
    alone = engine.generate([answered(case, scored=False) for case in cases])
    tokens = [list(output.outputs[0].token_ids) for output in alone]
    known = [(one.prompt + one.text, own) for one, own in zip(cases, tokens, strict=True)]
    monkeypatch.setattr(Drafter, "answers", known)
    reads = noted_reads(monkeypatch)
    outputs = engine.generate([answered(case, scored=True) for case in cases])
    assert [list(output.outputs[0].token_ids) for output in outputs] == tokens
    for one, output in zip(cases, outputs, strict=True):
        first, *later = reads[output.request_id]
        assert set(later) == {None}
        assert first is not None
        assert differences(first, one.wanted)["logprob"] < CLOSE
    # With drafts, some reports are of several tokens.
    reports = [len(found) for found in reads.values()]
    assert (min(reports) < TOKENS) == (options is DRAFTS)
    assert set(engine.leftovers().values()) == {0}
    engine.close()


def noted_reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Read | None]]:
    """What the scheduler's reports say of texts, by request."""
    reads: defaultdict[str, list[Read | None]] = defaultdict(list)
    whole = Report.put_on

    def noted(self: Report, output: Any) -> None:
        reads[output.request_id.partition("-")[0]].append(self.read)
        whole(self, output)

    monkeypatch.setattr(Report, "put_on", noted)
    return reads
