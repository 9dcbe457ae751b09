"""Reading a stream: events however they are fragmented, tokens, and faulty answers."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sse import Answer, Events


def event(text: str = "", finish: str | None = None, **fields: Any) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    choice |= {k: fields.pop(k) for k in ("decoding",) if k in fields}
    return json.dumps({"choices": [choice], **fields})


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": tokens}


def account(steps: int, method: str = "cad") -> dict[str, Any]:
    return {"method": method, "applied_steps": steps}


def answer(kind: str, *chunks: str) -> Answer:
    found = Answer(kind)
    for n, chunk in enumerate(chunks):
        found.feed(f"data: {chunk}\n\n".encode(), float(n))
    return found


STREAM = b': ping\r\n\r\ndata: {"a": 1}\n\nevent: x\ndata: two\r\ndata: lines\n\n\ndata:[DONE]\n\n'


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_do_not_depend_on_where_the_stream_is_cut(cuts: list[int]) -> None:
    events, found = Events(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(places):
        found += events.feed(STREAM[start:end])
    assert found == ['{"a": 1}', "two\nlines", "[DONE]"]


def test_tokens_are_counted_by_usage_not_by_chunks() -> None:
    """Two tokens in a chunk, a chunk without a token, a token without text."""
    found = answer(
        "plain",
        event("", usage=usage(0)),
        event("ab", usage=usage(2)),
        event("", usage=usage(3)),
        event("c", "stop", usage=usage(4)),
        json.dumps({"choices": [], "usage": usage(4)}),
        "[DONE]",
    )
    assert found.chunks == [(1.0, 2), (2.0, 1), (3.0, 1)]
    assert found.prompt_tokens == 7
    assert found.fault() == ""


def test_without_running_usage_each_chunk_with_text_is_a_token() -> None:
    found = answer("plain", event(""), event("a"), event("b"), event("", "length"), "[DONE]")
    assert found.chunks == [(1.0, 1), (2.0, 1)]
    assert found.fault() == ""


def test_a_guided_answer_must_account_for_every_token() -> None:
    def last(**fields: Any) -> Answer:
        first, second = event("a", usage=usage(1)), event("b", "stop", usage=usage(2), **fields)
        return answer("cad", first, second, "[DONE]")

    assert last(decoding=account(2)).fault() == ""
    assert last(decoding=account(1)).fault() == "applied_steps is not the number of tokens"
    assert last(decoding=account(2, "adacad")).fault() == "another method than asked for"
    assert last(decoding={"trace": []}).fault() == "guided, but no account of it"
    assert last().fault() == "guided, but no account of it"


def test_the_order_of_joined_methods_does_not_matter() -> None:
    ours = answer(
        "kl_temperature+adacad",
        event("a", "stop", usage=usage(1), decoding=account(1, "adacad+kl_temperature")),
        "[DONE]",
    )
    assert ours.fault() == ""


GUIDED = event("a", "stop", usage=usage(1), decoding=account(1))
LOST = json.dumps({"error": {"code": "lockstep_lost"}})


@pytest.mark.parametrize(
    ("chunks", "fault"),
    [
        ([GUIDED, "[DONE]"], "a method in a plain answer"),
        ([event("a", usage=usage(1))], "cut off"),
        ([event("a", "stop", usage=usage(1))], "cut off"),
        ([event("a", usage=usage(1)), "[DONE]"], "cut off"),
        ([event("", "stop", usage=usage(0)), "[DONE]"], "no tokens"),
        ([event("a"), LOST], "error event: lockstep_lost"),
        ([event("a"), '{"error": {"type": "internal"}}', "[DONE]"], "error event: internal"),
        (["{", "[DONE]"], "a chunk that cannot be read"),
        (["[]", "[DONE]"], "a chunk that cannot be read"),
    ],
)
def test_faults_of_plain_answers(chunks: list[str], fault: str) -> None:
    assert answer("plain", *chunks).fault() == fault
