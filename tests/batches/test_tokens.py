"""The tokens of a batch: summed over what each route says in its `usage`."""

from __future__ import annotations

from typing import Any

import pytest

from divserve.batches.tokens import tokens_in, usage_of

OF_CHAT = {
    "prompt_tokens": 40,
    "completion_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
OF_RESPONSES = {
    "input_tokens": 40,
    "output_tokens": 9,
    "input_tokens_details": {"cached_tokens": 16},
    "output_tokens_details": {"reasoning_tokens": 4},
}
OF_MESSAGES = {
    "input_tokens": 20,
    "output_tokens": 9,
    "cache_read_input_tokens": 16,
    "cache_creation_input_tokens": 4,
}


def line(usage: Any) -> dict[str, Any]:
    return {"custom_id": "a", "response": {"body": {"usage": usage}}}


@pytest.mark.parametrize(
    ("usage", "reasoning"), [(OF_CHAT, 4), (OF_RESPONSES, 4), (OF_MESSAGES, 0)]
)
def test_every_route_is_understood(usage: dict[str, Any], reasoning: int) -> None:
    sums = tokens_in(line(usage)) + tokens_in(line(usage))
    told = usage_of(sums)
    assert (told.input_tokens, told.output_tokens, told.total_tokens) == (80, 18, 98)
    assert told.input_tokens_details.cached_tokens == 32
    assert told.output_tokens_details.reasoning_tokens == 2 * reasoning


@pytest.mark.parametrize(
    "record",
    [
        line(None),
        line({"prompt_tokens": None, "prompt_tokens_details": None}),
        {"custom_id": "a", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "a", "response": {"body": "a text"}},
    ],
)
def test_what_says_nothing_counts_nothing(record: dict[str, Any]) -> None:
    assert usage_of(tokens_in(record)).total_tokens == 0
