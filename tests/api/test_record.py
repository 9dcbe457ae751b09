"""What is recorded of one HTTP request, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.api.record import Noted, Record
from divserve.http.scope import KEY_NAME


def result(*outputs: tuple[int, str | None], prompt: int = 3, **more: Any) -> Any:
    """What the engine yields: (tokens, finish reason) of each choice."""
    made = [SimpleNamespace(token_ids=[0] * n, finish_reason=reason) for n, reason in outputs]
    return SimpleNamespace(prompt_token_ids=[0] * prompt, outputs=made, **more)


def test_tokens_are_counted_by_prompt_and_summed() -> None:
    record = Record(streams=True)
    record.note(0, result((1, None), (2, "stop"), prompt=3))
    record.note(1, result((4, "length"), prompt=5))
    record.note(0, result((1, "stop"), prompt=9))
    assert record.prompt_tokens == {0: 3, 1: 5}
    assert record.completion_tokens == 8
    assert record.finish_reasons == ["stop", "length", "stop"]
    nothing = result((1, None))
    nothing.prompt_token_ids = None
    record.note(2, nothing)
    assert record.prompt_tokens[2] == 0


def test_the_first_token_of_a_stream_is_timed_once() -> None:
    record = Record(streams=True)
    record.started -= 5
    record.note(0, result((1, None)))
    assert record.ttft is not None
    assert 5 <= record.ttft < 6
    first = record.ttft
    record.started -= 5
    record.note(0, result((1, None)))
    assert record.ttft == first


@pytest.mark.parametrize(
    ("more", "ttft"),
    [
        ({}, None),
        ({"metrics": None}, None),
        ({"metrics": SimpleNamespace()}, None),
        ({"metrics": SimpleNamespace(first_token_latency=0.0)}, None),
        ({"metrics": SimpleNamespace(first_token_latency=0.25)}, 0.25),
    ],
)
def test_of_a_whole_answer_only_the_engine_knows_it(more: dict[str, Any], ttft: float) -> None:
    record = Record()
    record.note(0, result((1, "stop"), **more))
    assert record.ttft == ttft


CLIENTS, SERVERS = {"code": "invalid_value"}, {"code": "decoding_failed", "type": "server_error"}


@pytest.mark.parametrize(
    ("fields", "outcome", "shown"),
    [
        ({"status": 200, "complete": True}, "ok", 200),
        ({"status": 399, "complete": True}, "ok", 399),
        ({"status": 400, "complete": True}, "client_error", 400),
        ({"status": 499, "complete": True}, "client_error", 499),
        ({"status": 500, "complete": True}, "failed", 500),
        ({"status": 200}, "failed", 200),
        ({"complete": True}, "failed", 500),
        ({"status": 200, "complete": True, "gone": True}, "aborted", 499),
        ({"status": 200, "complete": True, "error": CLIENTS}, "client_error", 200),
        ({"status": 200, "complete": True, "error": SERVERS}, "failed", 200),
        ({"status": 200, "complete": True, "error": {"code": 500}}, "failed", 200),
        ({"status": 200, "complete": True, "error": {"code": 400}}, "client_error", 200),
        ({"status": 200, "complete": True, "error": {"code": 499}}, "client_error", 200),
        ({"status": 200, "complete": True, "error": {"code": 399}}, "failed", 200),
        ({"status": 400, "complete": True, "error": SERVERS}, "client_error", 400),
        ({"status": 503, "complete": True, "error": CLIENTS}, "failed", 503),
        ({"complete": True, "error": CLIENTS}, "client_error", 500),
    ],
)
def test_how_a_request_ended(fields: dict[str, Any], outcome: str, shown: int) -> None:
    record = Record(**fields)
    assert (record.outcome, record.shown_status) == (outcome, shown)


def test_means_are_over_all_tokens_of_all_choices() -> None:
    record = Record()
    assert record.means() == {}
    record.reports = [SimpleNamespace(steps=0, sums={"kl": 0.0})]  # type: ignore[list-item]
    assert record.means() == {}
    one = SimpleNamespace(steps=1, sums={"kl": 5.0})
    other = SimpleNamespace(steps=3, sums={"kl": 1.0, "jsd": 2.0})
    record.reports = [one, other]  # type: ignore[list-item]
    assert record.steps == 4
    assert record.means() == {"kl": 1.5, "jsd": 0.5}


def test_the_name_of_the_key() -> None:
    assert Record().key_name is None
    assert Record(scope={"state": {KEY_NAME: "alice"}}).key_name == "alice"
    assert Record(scope={"state": {KEY_NAME: 5}}).key_name is None


def test_a_copy_of_a_request_has_the_same_record() -> None:
    record = Record()
    assert deepcopy({"record": record})["record"] is record


@pytest.mark.parametrize("indexed", [False, True])
def test_results_are_noted_on_their_way(indexed: bool) -> None:
    yielded = [result((1, None), prompt=3), result((2, "stop"), prompt=3)]
    items: list[Any] = [(4, one) for one in yielded] if indexed else list(yielded)

    async def results() -> AsyncIterator[Any]:
        for item in items:
            yield item

    async def collect() -> list[Any]:
        return [item async for item in Noted(results(), record, indexed)]

    record = Record()
    assert asyncio.run(collect()) == items
    assert record.completion_tokens == 3
    assert record.prompt_tokens == {4 if indexed else 0: 3}
