"""A pair that comes apart ends its own request with an error; its neighbours do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams

from divserve.engine.groups import GroupTable
from divserve.engine.scheduler import LOST
from tests.support.engine import Engine, order

PROMPT, GUIDE = list(range(10, 60)), list(range(30, 60))


@pytest.fixture(scope="module", params=[False, True], ids=["sync", "async"])
def engine(tiny: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine for all faults."""
    engine = Engine(tiny, asynchronous=request.param)
    yield engine
    engine.close()


def params(guided: bool = True, **fields: Any) -> SamplingParams:
    extra = order("cad", GUIDE) if guided else None
    return SamplingParams(
        temperature=0, max_tokens=12, ignore_eos=True, detokenize=False, extra_args=extra, **fields
    )


def run_with_neighbours(engine: Engine) -> tuple[Any, Any, Any]:
    """Three requests in one batch: the victim, another guided one and a plain one."""
    batch = [(PROMPT, params()), (PROMPT[5:], params()), (PROMPT[9:], params(guided=False))]
    victim, guided, plain = engine.generate(batch)
    return victim, guided, plain


@pytest.fixture
def healthy(engine: Engine) -> tuple[Any, Any, Any]:
    """What the three answer when nothing goes wrong."""
    return run_with_neighbours(engine)


def assert_only_victim_failed(engine: Engine, healthy: Any, got: Any, tokens: int) -> None:
    victim, *others = got
    answer = victim.outputs[0]
    assert answer.finish_reason == "error"
    assert list(answer.token_ids) == list(healthy[0].outputs[0].token_ids[:tokens])
    assert victim.kv_transfer_params["divserve"] == {
        "error": LOST,
        "refused": False,
        "broken": "no_report",
        "unguided": 1,
    }
    for mine, expected in zip(others, healthy[1:], strict=True):
        assert mine.outputs[0].token_ids == expected.outputs[0].token_ids
    assert set(engine.leftovers().values()) == {0}


def test_worker_loses_a_pair(engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers forget the first pair after three tokens: no fourth token is sent."""
    build, steps = GroupTable.plan, 0

    def forgetful(table: GroupTable, req_ids: list[str], samples: np.ndarray) -> Any:
        nonlocal steps
        plan = build(table, req_ids, samples)
        steps += plan is not None
        if steps == 4 and len(table) == 2:
            table._entries.pop(next(iter(table._entries)))
            table._layout = []
            return build(table, req_ids, samples)
        return plan

    monkeypatch.setattr(GroupTable, "plan", forgetful)
    assert_only_victim_failed(engine, healthy, run_with_neighbours(engine), tokens=3)


def test_scheduler_splits_a_pair(
    engine: Engine, healthy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide row is left out of one step by force: the token of that step is not sent."""
    scheduler, steps = engine.scheduler, 0
    reserve, update = scheduler._reserve_prefill_lookahead, scheduler.schedule

    def counted(*args: Any) -> Any:
        nonlocal steps
        steps += bool(scheduler._groups)
        return update(*args)

    def split(request: Any, computed: int, tokens: int) -> int:
        first = next(iter(scheduler._groups.values()), None)
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
    """Ending the guide alone, which nothing in the server does, fails the primary."""
    scheduler = engine.scheduler
    engine.core.add_request("victim", {"prompt_token_ids": PROMPT}, params())
    outputs: list[Any] = []
    for step in range(40):
        outputs += engine.core.step()
        if step == 5:
            (guide,) = next(iter(scheduler._groups.values())).guides
            scheduler.finish_requests(guide.request_id, guide.status.FINISHED_ABORTED)
    assert [o.outputs[0].finish_reason for o in outputs if o.finished] == ["error"]
    reports = [o.kv_transfer_params["divserve"] for o in outputs if o.kv_transfer_params]
    told = [(report["error"], report["broken"]) for report in reports if "error" in report]
    assert told == [(LOST, "member_ended")]
    assert set(engine.leftovers().values()) == {0}


def test_refusal_by_the_scheduler_is_the_clients_error() -> None:
    """A pair that only the scheduler can see not to fit is a 400, not a failure of the server."""
    from divserve.engine.client import _account_for
    from divserve.engine.ledger import Account
    from divserve.errors import InvalidRequest

    account = Account(ticket=0, error="no room", refused=True)
    choice = SimpleNamespace(index=0, token_ids=[])
    with pytest.raises(InvalidRequest) as refused:
        _account_for(SimpleNamespace(outputs=[choice]), account)
    assert refused.value.code == "context_length_exceeded"


def test_front_end_refuses_tokens_without_statistics() -> None:
    """Even if the scheduler let one pass, the client raises instead of yielding it."""
    from divserve.engine.client import _account_for
    from divserve.engine.ledger import Account
    from divserve.errors import DecodingFailed

    account = Account(ticket=0)
    account.rows[0].extend([(0.0,) * 5] * 2)
    choice = SimpleNamespace(index=0, token_ids=[1, 2, 3])
    with pytest.raises(DecodingFailed) as failed:
        _account_for(SimpleNamespace(outputs=[choice]), account)
    assert failed.value.code == "lockstep_lost"
