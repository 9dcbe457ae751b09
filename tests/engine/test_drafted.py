"""The account of draft tokens: only those behind tokens that a client gets are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from divserve.decoding import METHODS, Stack
from divserve.engine.client.drafted import Drafted, DraftLog
from divserve.engine.client.guided import _account_for
from divserve.engine.client.ledger import Ledger
from divserve.engine.client.orders import check_drafts
from divserve.engine.reported import Report


def test_a_step_takes_one_token_without_drafts() -> None:
    log = DraftLog()
    for tokens, drafted in ((1, 0), (4, 5), (1, 5), (2, 0), (6, 5)):
        log.add(tokens, drafted)
    assert log.take(14) == Drafted(proposed=15, accepted=3 + 0 + 5, rounds=3)
    assert log.take(0) is None


def test_steps_without_drafts_leave_nothing() -> None:
    log = DraftLog()
    log.add(1, 0)
    log.add(3, 2)
    assert log.take(1) is None
    assert log.take(1) == Drafted(proposed=2, accepted=0, rounds=1)
    assert log.take(2) == Drafted(proposed=0, accepted=2, rounds=0)


def test_tokens_that_are_not_sent_are_not_counted() -> None:
    """vLLM drops those behind a stop string, and steps that were under way when it was met."""
    processor = Processor()
    ledger = Ledger(processor)
    account, order = ledger.open(
        Stack(METHODS["entropy_temperature"](method="entropy_temperature")).spec(1.0, [])
    )
    params = SimpleNamespace(extra_args={})
    order.put_on(params)
    request: Any = SimpleNamespace(request_id="answer", sampling_params=params)
    processor.add_request(request, None)
    step(processor, tokens=4, drafted=5)
    step(processor, tokens=6, drafted=5)
    sent = SimpleNamespace(index=0, token_ids=[1, 2, 3, 4, 5, 6])
    _account_for(SimpleNamespace(outputs=[sent]), account)
    assert sent.drafts == Drafted(proposed=10, accepted=3 + 1, rounds=2)
    assert len(sent.guidance) == 6


@pytest.mark.parametrize(("field", "value"), [("min_p", 0.1), ("logit_bias", {5: 1.0})])
def test_what_drafts_exclude_is_named(field: str, value: Any) -> None:
    given = {field: value}
    with pytest.raises(VLLMValidationError, match=f"^{field} is not supported") as refused:
        check_drafts(SamplingParams(**given), object())
    assert refused.value.parameter == field
    check_drafts(SamplingParams(**given), None)
    check_drafts(SamplingParams(min_p=0.0, logit_bias={}), object())
    check_drafts(SamplingParams(min_p=0.1, temperature=0), object())


class Processor:
    """vLLM's output processor, as far as the ledger uses it."""

    def add_request(self, *args: Any) -> None: ...

    def process_outputs(self, outputs: list[Any]) -> None: ...


def step(processor: Processor, tokens: int, drafted: int) -> None:
    output = SimpleNamespace(request_id="answer", kv_transfer_params=None)
    Report(statistics=((0.0,),) * tokens, drafted=drafted).put_on(output)
    processor.process_outputs([output])
