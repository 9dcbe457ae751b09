"""A fault in one request ends it with an error; its neighbours are not affected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams

from divserve.engine.faults import NOT_NUMBERS
from divserve.engine.scheduler.scheduler import LOST
from divserve.engine.worker.grounding import Groundings
from divserve.engine.worker.guidance import GuidanceStages
from divserve.engine.worker.pipeline import Pipeline
from divserve.engine.worker.programs import GroupPrograms
from divserve.engine.worker.vocabulary import VocabularyCap
from tests.support.engine import Engine, report_of, stacked

PROMPT, GUIDE = list(range(10, 60)), list(range(30, 60))
TEXT = list(range(70, 150))


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine for all faults."""
    engine = Engine(tiny, asynchronous=request.param)
    yield engine
    engine.close()


def params(
    guided: bool = True, method: str = "cad", grounding: list[int] | None = None, **fields: Any
) -> SamplingParams:
    text = {} if grounding is None else {"grounding": "x"}
    guide = GUIDE if grounding is None else None
    extra = stacked([{"method": method, **text}], [guide], 0.0, grounding) if guided else None
    return SamplingParams(
        temperature=0, max_tokens=12, ignore_eos=True, detokenize=False, extra_args=extra, **fields
    )


def run_with_neighbours(engine: Engine) -> tuple[Any, Any, Any]:
    """Runs three requests in one batch: the victim, another guided one and a plain one."""
    batch = [(PROMPT, params()), (PROMPT[5:], params()), (PROMPT[9:], params(guided=False))]
    victim, guided, plain = engine.generate(batch)
    return victim, guided, plain


@pytest.fixture
def healthy(engine: Engine) -> tuple[Any, Any, Any]:
    """The three answers when nothing goes wrong."""
    return run_with_neighbours(engine)


def assert_only_victim_failed(
    engine: Engine, healthy: Any, got: Any, tokens: int, why: str = LOST
) -> None:
    victim, *others = got
    answer = victim.outputs[0]
    assert answer.finish_reason == "error"
    assert list(answer.token_ids) == list(healthy[0].outputs[0].token_ids[:tokens])
    report = report_of(victim)
    assert report is not None
    assert (report.error, report.refused) == (why, False)
    noticed = ("no_report", 1) if why == LOST else ("not_numbers", 0)
    assert (report.broken, report.unguided) == noticed
    for mine, expected in zip(others, healthy[1:], strict=True):
        assert mine.outputs[0].token_ids == expected.outputs[0].token_ids
    assert set(engine.leftovers().values()) == {0}


def test_worker_loses_a_pair(engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers forget the first pair after three tokens: no fourth token is sent."""
    place, steps = GuidanceStages.place, 0

    def forgetful(stages: GuidanceStages, *args: Any) -> bool:
        nonlocal steps
        steps += (found := place(stages, *args))
        if steps == 4 and len(stages) == 2:
            stages._drop(stages._pipeline.names[0])
            stages._stale = True
            return place(stages, *args)
        return found

    monkeypatch.setattr(GuidanceStages, "place", forgetful)
    assert_only_victim_failed(engine, healthy, run_with_neighbours(engine), tokens=3)


@pytest.mark.parametrize("member", ["primary", "guide"])
def test_logits_are_not_numbers(
    engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    """NaN in one row of the fourth step: its token is not sent, and the other rows stay numbers."""
    guide, steps = GuidanceStages.guide, 0

    def broken(stages: GuidanceStages, logits: torch.Tensor, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            copies = stages._pipeline.guide_tokens._copies
            assert copies is not None
            rows, guide_rows = copies
            logits[(rows if member == "primary" else guide_rows)[0]] = float("nan")
        return guide(stages, logits, *args)

    monkeypatch.setattr(GuidanceStages, "guide", broken)
    got = run_with_neighbours(engine)
    assert_only_victim_failed(engine, healthy, got, tokens=3, why=NOT_NUMBERS)


def test_laying_out_one_group_raises(
    engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group is left out of the step, in which the others are still guided."""
    lay_out, victim = VocabularyCap.lay_out, ""

    def raising(stage: VocabularyCap, groups: Any, *args: Any) -> None:
        nonlocal victim
        names = groups.names.tolist()
        if len(names) == 2 and not victim:
            victim = names[0]
        if victim in names:
            raise KeyError("for this test")
        lay_out(stage, groups, *args)

    monkeypatch.setattr(VocabularyCap, "lay_out", raising)
    got = run_with_neighbours(engine)
    sent = len(got[0].outputs[0].token_ids)
    assert sent < 12
    assert_only_victim_failed(engine, healthy, got, tokens=sent)


def test_an_order_cannot_be_taken_up(
    engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does not know the group, so not even its first token is sent."""
    add, calls = VocabularyCap.add, 0

    def raising(stage: VocabularyCap, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("for this test")
        add(stage, *args)

    monkeypatch.setattr(VocabularyCap, "add", raising)
    assert_only_victim_failed(engine, healthy, run_with_neighbours(engine), tokens=0)


def test_programs_cannot_be_sent(
    engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All groups that are new in the step end; the plain request and the engine continue."""

    def raising(*args: Any) -> None:
        raise RuntimeError("for this test")

    with monkeypatch.context() as patch:
        patch.setattr(GroupPrograms, "send", raising)
        *guided, plain = run_with_neighbours(engine)
    assert [o.outputs[0].finish_reason for o in guided] == ["error"] * 2
    assert plain.outputs[0].token_ids == healthy[2].outputs[0].token_ids
    assert set(engine.leftovers().values()) == {0}


@pytest.mark.parametrize("fault", ["raises", "NaN"])
def test_a_grounding_text_cannot_be_read(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The text has two chunks, and the second fails; another text is read in the same steps."""
    healthy = run_with_grounded(engine)
    reduce, victim, calls = Groundings._reduce, "", 0

    def broken(table: Groundings, text: Any, logits: torch.Tensor) -> None:
        nonlocal victim, calls
        victim = victim or text.primary
        calls += text.primary == victim
        if text.primary == victim and calls == 2:
            if fault == "raises":
                raise RuntimeError("for this test")
            logits = logits * float("nan")
        reduce(table, text, logits)

    with monkeypatch.context() as patch:
        patch.setattr(Groundings, "_reduce", broken)
        got = run_with_grounded(engine)
    why = LOST if fault == "raises" else NOT_NUMBERS
    assert calls == 2
    assert_only_victim_failed(engine, healthy, got, tokens=0, why=why)
    again = run_with_grounded(engine)
    assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in healthy]


def run_with_grounded(engine: Engine) -> list[Any]:
    """Runs a victim and another request with a grounding text, a guided one and a plain one."""
    grounded = [params(method="vdgd", grounding=text) for text in (TEXT, TEXT[40:])]
    batch = [(PROMPT, grounded[0]), (PROMPT[5:], grounded[1])]
    return engine.generate([*batch, (PROMPT[5:], params()), (PROMPT[9:], params(guided=False))])


def test_guiding_raises(engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call guides all groups: all of its step end; the plain request and the engine
    continue."""

    def raising(*args: Any) -> Any:
        raise RuntimeError("for this test")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "apply", raising)
        *guided, plain = run_with_neighbours(engine)
    assert [o.outputs[0].finish_reason for o in guided] == ["error"] * 2
    assert [list(o.outputs[0].token_ids) for o in guided] == [[]] * 2
    assert plain.outputs[0].token_ids == healthy[2].outputs[0].token_ids
    assert set(engine.leftovers().values()) == {0}
    again = run_with_neighbours(engine)
    assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in healthy]


def test_scheduler_splits_a_pair(
    engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide row is forcibly left out of one step: the token of that step is not sent."""
    scheduler, steps = engine.scheduler, 0
    reserve, update = scheduler._reserve_prefill_lookahead, scheduler.schedule

    def counted(*args: Any) -> Any:
        nonlocal steps
        steps += bool(len(scheduler.groups))
        return update(*args)

    def split(request: Any, computed: int, tokens: int) -> int:
        first = next(iter(scheduler.groups), None)
        if steps == 5 and first is not None and request is first.guides[0]:
            return 0
        return int(reserve(request, computed, tokens))

    monkeypatch.setattr(scheduler, "schedule", counted)
    monkeypatch.setattr(scheduler, "_reserve_prefill_lookahead", split)
    victim, *others = run_with_neighbours(engine)
    assert victim.outputs[0].finish_reason == "error"
    expected = list(healthy[0].outputs[0].token_ids)
    sent = list(victim.outputs[0].token_ids)
    assert 0 < len(sent) < len(expected)
    assert sent == expected[: len(sent)]
    assert [o.outputs[0].token_ids for o in others] == [o.outputs[0].token_ids for o in healthy[1:]]
    assert set(engine.leftovers().values()) == {0}


def test_guide_row_is_aborted(engine: Engine, healthy: Any) -> None:
    """Ending only the guide, which nothing in the server does, fails the primary."""
    scheduler = engine.scheduler
    engine.core.add_request("victim", {"prompt_token_ids": PROMPT}, params())
    outputs: list[Any] = []
    for step in range(40):
        outputs += engine.core.step()
        if step == 5:
            (guide,) = next(iter(scheduler.groups)).guides
            scheduler.finish_requests(guide.request_id, guide.status.FINISHED_ABORTED)
    assert [o.outputs[0].finish_reason for o in outputs if o.finished] == ["error"]
    reports = [report for o in outputs if (report := report_of(o)) is not None]
    told = [(report.error, report.broken) for report in reports if report.error is not None]
    assert told == [(LOST, "member_ended")]
    assert set(engine.leftovers().values()) == {0}


def test_refusal_by_the_scheduler_is_the_clients_error() -> None:
    """A pair that only the scheduler can find too large is a 400, not a server error."""
    from divserve.engine.client.guided import _account_for
    from divserve.engine.client.ledger import Account
    from divserve.errors import InvalidRequest

    account = Account(ticket=0, error="no room", refused=True)
    choice = SimpleNamespace(index=0, token_ids=[])
    with pytest.raises(InvalidRequest) as refused:
        _account_for(SimpleNamespace(outputs=[choice]), account)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("error", "code"), [(LOST, "lockstep_lost"), (NOT_NUMBERS, "decoding_failed")]
)
def test_the_client_is_told_what_failed(error: str, code: str) -> None:
    from divserve.engine.client.guided import _account_for
    from divserve.engine.client.ledger import Account
    from divserve.errors import DecodingFailed

    with pytest.raises(DecodingFailed, match=error[:20]) as failed:
        _account_for(SimpleNamespace(outputs=[]), Account(ticket=0, error=error))
    assert (failed.value.status, failed.value.code) == (500, code)


def test_front_end_refuses_tokens_without_statistics() -> None:
    """Even if the scheduler let one pass, the client raises instead of yielding it."""
    from divserve.engine.client.guided import _account_for
    from divserve.engine.client.ledger import Account
    from divserve.errors import DecodingFailed

    account = Account(ticket=0)
    account.statistics[0].extend([(0.0,) * 5] * 2)
    choice = SimpleNamespace(index=0, token_ids=[1, 2, 3])
    with pytest.raises(DecodingFailed) as failed:
        _account_for(SimpleNamespace(outputs=[choice]), account)
    assert failed.value.code == "lockstep_lost"
