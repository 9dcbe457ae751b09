"""The account of a choice, and how it gets into the events of a stream."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from divserve.api.report import ChoiceReport
from divserve.api.stream import StreamReport, reported
from divserve.api.texts import Token
from divserve.decoding import STATISTICS, Guide, LookBack, LookRow, LookState, Stack
from divserve.decoding.cad import Cad
from divserve.decoding.kl_temperature import KlTemperature
from divserve.decoding.linear_alignment import LinearAlignment
from divserve.engine.client.drafted import Drafted
from divserve.errors import DecodingFailed
from tests.support.metrics import Changes

GUIDE = Guide(prompt="x")


@dataclass
class Output:
    token_ids: list[int]
    guidance: list[tuple[float, ...]] = field(default_factory=list)
    index: int = 0
    finish_reason: str | None = None
    drafts: Drafted | None = None


def row(entropy: float, kl: float = 0.5) -> tuple[float, ...]:
    known = {"entropy": entropy, "kl": kl, "jsd": 0.25, "alpha": 0.75, "factor": 0.5}
    return tuple(known.get(name, 1.0) for name in STATISTICS)


def output(*token_ids: int, index: int = 0, finish: str | None = None) -> Output:
    return Output(list(token_ids), [row(float(t)) for t in token_ids], index, finish)


def texts(token_ids: Sequence[int], before: Sequence[Sequence[int]]) -> list[Token]:
    """The bytes are the tokens that the text may depend on."""
    return [Token(f"<{t}>", list(others)) for t, others in zip(token_ids, before, strict=True)]


def report(trace: bool = True) -> ChoiceReport:
    method = Cad(method="cad", alpha=0.75, guide=GUIDE, trace=trace)
    return ChoiceReport(Stack(method), False, 1.0, 7, texts)


def test_summary_counts_what_the_engine_reported() -> None:
    account = report()
    account.add(output(1, 2))
    account.add(output(6))

    assert account.summary() == {
        "method": "cad",
        "applied_steps": 3,
        "guide_prompt_tokens": 7,
        "mean": {"entropy": 3.0, "kl": 0.5, "jsd": 0.25, "alpha": 0.75},
        "trace": [
            {"token": f"<{t}>", "token_id": t, "bytes": before, "entropy": t, "kl": 0.5,
             "jsd": 0.25, "alpha": 0.75}
            for t, before in {1: [], 2: [1], 6: [1, 2]}.items()
        ],
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [[6], [1, 1, 1, 1, 1, 1], [2, 3, 1], [5, 1]])
def test_the_tokens_before_a_token_are_known_however_they_come(sizes: list[int]) -> None:
    account, ids = report(), iter(range(6))
    for size in sizes:
        account.add(output(*[next(ids) for _ in range(size)]))
    found = [entry["bytes"] for entry in account.take_trace()]
    assert found == [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]


def test_drafts_are_added_up() -> None:
    """Outputs bring those behind their own tokens; an answer without any does not mention them."""
    account, changes = report(), Changes(lambda: generate_latest(REGISTRY).decode())
    account.add(output(1))
    assert "draft" not in account.summary()
    for proposed, accepted, rounds in ((5, 2, 1), (7, 0, 2), (0, 1, 0)):
        one = output(2, 3, 4)
        one.drafts = Drafted(proposed, accepted, rounds)
        account.add(one)
    account.add(output(5))
    assert account.summary()["draft"] == {"proposed": 12, "accepted": 3, "rounds": 3}
    counted = {"proposed_tokens": 12, "accepted_tokens": 3, "rounds": 3}
    for name, value in counted.items():
        assert changes.of(f"draft_{name}_total", method="cad") == value


def test_figures_are_those_of_the_method() -> None:
    method = KlTemperature(method="kl_temperature", guide=GUIDE, trace=True)
    account = ChoiceReport(Stack(method), False, 0.8, 7, texts)
    account.add(output(1))
    assert account.summary()["mean"] == {"entropy": 1, "kl": 0.5, "jsd": 0.25, "temperature": 0.4}


def test_no_trace_unless_asked() -> None:
    account = report(trace=False)
    account.add(output(1))
    assert "trace" not in account.summary()


def test_numbers_are_rounded_and_finite() -> None:
    account = report()
    account.add(Output([1], [row(1 / 3, kl=math.inf)]))
    summary = account.summary()
    assert summary["mean"]["entropy"] == summary["trace"][0]["entropy"] == 0.333333
    assert summary["mean"]["kl"] is summary["trace"][0]["kl"] is None
    json.dumps(summary, allow_nan=False)


def test_a_choice_without_tokens_has_no_means() -> None:
    summary = report().summary()
    assert summary["applied_steps"] == 0
    assert set(summary["mean"].values()) == {None}


@pytest.mark.parametrize("rows", [[], [row(1.0)]])
def test_a_token_without_statistics_is_an_error(rows: list[tuple[float, ...]]) -> None:
    """An answer that was decoded plainly, in whole or in part, never looks like a guided one."""
    with pytest.raises(DecodingFailed, match="cad was not applied"):
        report().add(Output([1, 2], rows))


def test_an_output_of_a_plain_request_is_an_error() -> None:
    plain = Output([1])
    del plain.guidance
    with pytest.raises(DecodingFailed):
        report().add(plain)


def event(index: int = 0, finish: str | None = None, **more: Any) -> str:
    choice = {"index": index, "delta": {"content": "é"}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice], **more})}\n\n"


def accounts(text: str) -> list[Any]:
    return [c.get("decoding") for c in json.loads(text.removeprefix("data: "))["choices"]]


def stream(choices: int = 1, trace: bool = True) -> StreamReport:
    return StreamReport(lambda prompt: report(trace), choices, trace)


def test_every_chunk_carries_the_entries_of_its_tokens() -> None:
    events = stream()
    events.record(0, [output(1)])
    (first,) = accounts(events.add_to(event()))
    events.record(0, [output(2, 3, finish="stop")])
    (last,) = accounts(events.add_to(event(finish="stop")))

    assert [entry["token_id"] for entry in first["trace"]] == [1]
    assert first.keys() == {"trace"}
    assert [entry["token_id"] for entry in last["trace"]] == [2, 3]
    assert last["applied_steps"] == 3


def test_a_trace_at_the_end_comes_with_the_finishing_chunk() -> None:
    events = StreamReport(lambda prompt: report(), choices=2, trace=False)
    events.record(0, [output(1), output(4, index=1)])
    assert accounts(events.add_to(event())) == [None]
    events.record(0, [output(2, finish="stop")])
    assert accounts(events.add_to(event())) == accounts(events.add_to(event(1))) == [None]
    (last,) = accounts(events.add_to(event(finish="stop")))
    assert [entry["token_id"] for entry in last["trace"]] == [1, 2]
    assert last["applied_steps"] == 2


def test_entries_of_tokens_without_a_chunk_come_with_the_next_one() -> None:
    events = stream()
    events.record(0, [output(1)])
    events.record(0, [output(2)])
    (account,) = accounts(events.add_to(event()))
    assert [entry["token_id"] for entry in account["trace"]] == [1, 2]


def test_choices_that_end_in_one_result_keep_their_own_summaries() -> None:
    events = stream(choices=2, trace=False)
    events.record(1, [output(1, index=0, finish="stop"), output(2, 3, index=1, finish="stop")])
    steps = [
        accounts(events.add_to(event(index, finish="stop")))[0]["applied_steps"] for index in (2, 3)
    ]
    assert steps == [1, 2]


def test_a_choice_that_goes_on_gets_nothing_of_one_that_ends() -> None:
    events = stream(choices=2, trace=False)
    events.record(0, [output(1, index=0), output(2, index=1, finish="stop")])
    assert accounts(events.add_to(event(0))) == [None]


def test_events_that_have_nothing_to_add_pass_unchanged() -> None:
    events = stream(trace=False)
    events.record(0, [output(1)])
    for text in (event(), "data: [DONE]\n\n", ": keep-alive\n\n"):
        assert events.add_to(text) is text


def test_an_account_is_sent_once() -> None:
    events = stream(choices=2)
    events.record(0, [output(1), output(2, index=1)])
    assert accounts(events.add_to(event())) != [None]
    assert accounts(events.add_to(event())) == [None]
    assert accounts(events.add_to(event(1))) != [None]


def test_chunks_without_choices_stay_as_they_are() -> None:
    events = stream()
    events.record(0, [output(1)])
    for text in ('data: {"usage":{"total_tokens":3}}\n\n', 'data: {"choices":[]}\n\n'):
        assert events.add_to(text) == text


def test_the_rest_of_the_chunk_is_kept() -> None:
    events = stream()
    events.record(0, [output(1)])
    changed = events.add_to(event(usage={"total_tokens": 3}))
    assert changed.endswith("}\n\n")
    assert '"é"' in changed
    assert json.loads(changed[6:])["usage"] == {"total_tokens": 3}


async def events_of(*events: str) -> AsyncIterator[str]:
    for text in events:
        yield text


ERROR = 'data: {"error": {"message": "m", "type": "server_error", "code": "decoding_failed"}}\n\n'
DONE = "data: [DONE]\n\n"


def test_an_error_ends_a_guided_stream() -> None:
    async def collect() -> list[str]:
        source: Any = events_of(event(), ERROR, DONE)
        return [text async for text in reported(source, events_of(), stream())]  # type: ignore[arg-type]

    assert asyncio.run(collect()) == [event(), ERROR]


def test_a_figure_called_candidates_is_a_number() -> None:
    """look_back's trace has a list of that name, other methods a count."""
    method = LinearAlignment(method="linear_alignment", guide=GUIDE, trace=True)
    account = ChoiceReport(Stack(method), False, 1.0, 7, texts)
    account.add(output(1))
    assert [entry["candidates"] for entry in account.summary()["trace"]] == [1.0]


def test_the_candidates_of_look_back() -> None:
    """The texts of the tokens are filled in; a clear step has none."""
    account = ChoiceReport(Stack(LookBack(method="look_back", trace=True)), False, 1.0, 0, texts)
    clear, chosen = (
        LookRow(2.0, 5, LookState.CLEAR, (), ()),
        LookRow(0.25, 3, LookState.CHOSEN, (7, 9), (4 / 3, 0.5)),
    )
    account.add(Output([8, 9], [row(1.0) + clear.flat(), row(1.0) + chosen.flat()]))
    summary = account.summary()
    assert summary["mean"] == {"kl_min": 1.125, "alarm": 0.5, "entropy": 1.0}
    assert [entry["nearest"] for entry in summary["trace"]] == [5, 3]
    assert "candidates" not in summary["trace"][0]
    assert summary["trace"][1]["candidates"] == [
        {"token_id": 7, "kl": 1.333333, "token": "<7>"},
        {"token_id": 9, "kl": 0.5, "token": "<9>"},
    ]
