"""How many messages, parts, tools and values a body may hold: both sides of every limit."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divserve.errors import InvalidRequest
from divserve.http.fields import FieldLimits
from divserve.http.items import check_input, check_items
from divserve.http.openai import ResponsesRequest

LIMITS = FieldLimits(max_messages=3, max_parts=4, max_tools=2, max_json_values=50)
USER: Any = {"role": "user", "content": ""}


def in_parts(count: int) -> Any:
    return {"role": "user", "content": ["a"] * count}


def guide(messages: list[Any]) -> Any:
    return {"method": "cad", "guide": {"messages": messages}}


def check(body: Any) -> None:
    check_items(body, len(json.dumps(body)), LIMITS)


@pytest.mark.parametrize(
    "body",
    [
        None, 5, [], "text", {}, {"messages": "many", "tools": 5, "input": None, "system": "a"},
        {"messages": [USER] * 3, "tools": [{}] * 2},
        {"messages": [[USER] * 2, [USER]]},
        {"messages": [USER] * 2, "decoding": guide([USER])},
        {"messages": [in_parts(2), in_parts(2)]},
        {"messages": [{"role": "assistant", "tool_calls": [{}] * 4}]},
        {"system": ["a"] * 2, "messages": [in_parts(2)]},
        {"decoding": [None, {"guide": "a"}, {"guide": {"messages": "a"}}]},
        {"input": list(range(40))},
        {"prompt": list(range(500))},
        {"prompt": [[1] * 500, [2] * 500]},
        {"decoding": {"guide": {"prompt": [3] * 500}}},
        {"prompt": "a" * 500},
    ],
)  # fmt: skip
def test_as_many_as_fit(body: Any) -> None:
    check(body)


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"messages": [USER] * 4}, "messages", "messages has 4 messages; the most is 3."),
        ({"messages": [[USER] * 2, [USER] * 2]}, "messages", "has 4 messages"),
        ({"messages": [{}, 1, None, "a"]}, "messages", "has 4 messages"),
        ({"input": [USER] * 4}, "input", "--max-messages"),
        (
            {"messages": [USER] * 2, "decoding": guide([USER] * 2)},
            "decoding.guide.messages",
            "has 4 messages",
        ),
        (
            {"messages": [USER] * 2, "decoding": [{}, guide([USER]), guide([USER])]},
            "decoding.2.guide.messages",
            "has 4 messages",
        ),
        ({"messages": [in_parts(2), in_parts(3)]}, "messages", "has 5 content parts"),
        ({"messages": [in_parts(1) | {"tool_calls": [{}] * 4}]}, "messages", "--max-parts"),
        (
            {"messages": [{"content": [{"type": "tool_result", "content": [{}] * 4}]}]},
            "messages",
            "has 5 content parts",
        ),
        ({"system": ["a"] * 3, "messages": [in_parts(2)]}, "messages", "has 5 content parts"),
        ({"tools": [{}] * 3}, "tools", "tools has 3 tools; the most is 2."),
        ({"tools": [{"tools": [{}, {}]}, None]}, "tools", "--max-tools"),
        ({"stop": [1.5] * 50}, None, "The body has more than 50 JSON values"),
        ({"prompt": [1.5] * 50}, None, "--max-json-values"),
        ({"prompt": [[1], [2.5] * 50]}, None, "--max-json-values"),
        ({"documents": [1] * 50}, None, "--max-json-values"),
        ({"logit_bias": {str(i): 1 for i in range(50)}}, None, "--max-json-values"),
        ([[{}] * 50], None, "--max-json-values"),
    ],
)
def test_one_too_many(body: Any, param: str | None, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check(body)
    assert refused.value.param == param
    assert told in refused.value.message


@given(st.recursive(st.integers() | st.text(max_size=2), st.lists, max_leaves=60))
def test_small_bodies_need_no_count(body: Any) -> None:
    """A text of fewer bytes than two for each value that is allowed never has more of them."""

    def values(value: Any) -> int:
        return 1 + sum(map(values, value)) if isinstance(value, list) else 1

    text = json.dumps(body, separators=(",", ":"))
    assert values(body) <= len(text) // 2 + 1


def test_the_defaults_are_beyond_what_clients_send() -> None:
    limits = FieldLimits()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"required": ["a"] * 100}}}
    turns = [in_parts(2) for _ in range(1000)]
    body = {"messages": turns, "tools": [tool] * 128, "logit_bias": {str(i): 1 for i in range(300)}}
    check_items(body, 4 * 1024 * 1024, limits)
    check_items({"prompt": [5] * 1_000_000}, 4 * 1024 * 1024, limits)


def test_the_first_wrong_item_ends_the_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them has more than two hundred errors, which took two milliseconds."""
    validate = Mock(wraps=ResponsesRequest.model_validate)
    monkeypatch.setattr(ResponsesRequest, "model_validate", validate)
    with pytest.raises(InvalidRequest) as refused:
        check_input([USER, {}, *[{}] * 1000])
    assert refused.value.param == "input.1"
    assert validate.call_count == 2


@pytest.mark.parametrize("value", [None, "text", [], [USER] * 3])
def test_input_that_is_right(value: Any) -> None:
    check_input(value)


def test_a_validator_that_fails_is_for_the_route_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Mock(side_effect=AttributeError)
    monkeypatch.setattr(ResponsesRequest, "model_validate", broken)
    check_input([{}] * 3)
    assert broken.call_count == 1
