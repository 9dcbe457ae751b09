"""Errors of vLLM's checks name the field as the body of the route calls it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.http.named import named
from divserve.http.paths import CHAT, CHAT_BATCH, MESSAGES, RESPONSES
from tests.support.chat import CAD
from tests.support.routes import CHATS

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

LONG = 10**9


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        (RESPONSES, {"input": []}, "input", "empty conversation"),
        (RESPONSES, {"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be"),
        (RESPONSES, {"max_output_tokens": LONG}, "max_output_tokens", "max_output_tokens=1"),
        (RESPONSES, {"previous_response_id": "resp_x"}, "previous_response_id", "not found"),
        (RESPONSES, {"tools": [{"type": "nope"}]}, "tools.0.name", "required"),
        (RESPONSES, {"text": {"format": {"type": "nope"}}}, "text.format.type", "should be"),
        (MESSAGES, {"messages": []}, "messages", "empty conversation"),
        (MESSAGES, {"max_tokens": LONG}, "max_tokens", "max_tokens=1000000000 cannot"),
        (MESSAGES, {"stop_sequences": [""]}, "stop_sequences", "stop_sequences cannot"),
        (MESSAGES, {"top_k": -5}, "top_k", "top_k must"),
        (CHAT, {"top_k": -5}, "top_k", "top_k must"),
        (CHAT, {"messages": []}, "messages", "empty conversation"),
        (CHAT_BATCH, {"messages": [[7]]}, "messages.0.0", "should be an object"),
        (CHAT_BATCH, {"response_format": {"type": "nope"}}, "response_format.type", "should be"),
    ],
)
@pytest.mark.parametrize("decoding", [None, CAD], ids=["plain", "guided"])
def test_the_field_is_that_of_the_body(
    http: TestClient, path: str, fields: dict[str, Any], param: str, says: str, decoding: Any
) -> None:
    response = http.post(path, json={**CHATS[path].body, "decoding": decoding, **fields})
    error = response.json()["error"]
    assert response.status_code in (400, 404)
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    ("message", "param", "found"),
    [
        ("top_k must be 0", None, "top_k"),
        ("tool_choice=function needs a parser", None, "tool_choice"),
        ("the rest must be 0", None, None),
        ("nothing must be 0", None, None),
        ("max_tokens must be 1", "max_tokens", "max_output_tokens"),
        ("5 is too long", "decoding.guide", "decoding.guide"),
    ],
)
def test_which_field_it_is_about(message: str, param: str | None, found: str | None) -> None:
    error = named({"message": message, "param": param, "type": "t", "code": "c"}, RESPONSES)
    assert error["param"] == found
    assert error["message"] == message.replace(param or "-", found or "-")
