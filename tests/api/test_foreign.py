"""Errors that are not ours in OpenAI's shape, status by status."""

from __future__ import annotations

from typing import Any

import pytest

from divserve.http.foreign import INTERNAL, KINDS, foreign_body, status_of

OURS = {"message": "m", "type": "t", "param": None, "code": "c"}
LONG = "This model's maximum context length is 256 tokens."
GONE = "The model `gone` does not exist."
CLIENT, SERVER, RATE = "invalid_request_error", "server_error", "rate_limit_error"


@pytest.mark.parametrize(
    ("status", "body", "shaped"),
    [
        (400, {"error": {"message": "no", "code": 400}}, ("no", CLIENT, None, "invalid_value")),
        (400, {"error": "no"}, ("no", CLIENT, None, "invalid_value")),
        (400, {"detail": "no"}, ("no", CLIENT, None, "invalid_value")),
        (400, {"error": "", "detail": "no"}, ("no", CLIENT, None, "invalid_value")),
        (400, {"error": {"message": "no", "param": "n"}}, ("no", CLIENT, "n", "invalid_value")),
        (400, {"error": {"message": "no", "code": "c"}}, ("no", CLIENT, None, "invalid_value")),
        (400, {"error": {"message": ""}}, ("Bad request.", CLIENT, None, "invalid_value")),
        (400, {"error": {"message": 5}}, ("Bad request.", CLIENT, None, "invalid_value")),
        (400, None, ("Bad request.", CLIENT, None, "invalid_value")),
        (400, {"error": LONG}, (LONG, CLIENT, None, "context_length_exceeded")),
        (
            400,
            {"error": {"message": "long", "param": "input_tokens"}},
            ("long", CLIENT, "input_tokens", "context_length_exceeded"),
        ),
        (
            400,
            {"error": {"message": "long", "param": "input_text"}},
            ("long", CLIENT, "input_text", "context_length_exceeded"),
        ),
        (404, {"error": GONE}, (GONE, CLIENT, "model", "model_not_found")),
        (400, {"error": GONE}, (GONE, CLIENT, None, "invalid_value")),
        (404, {"error": "no model here"}, ("no model here", CLIENT, None, "not_found")),
        (404, {"error": "it does not exist"}, ("it does not exist", CLIENT, None, "not_found")),
        (429, {"error": "slow"}, ("slow", RATE, None, "rate_limit_exceeded")),
        (418, {"error": "tea"}, ("tea", CLIENT, None, "i'm_a_teapot")),
        (499, {"error": "left"}, ("left", CLIENT, None, "http_499")),
        (500, {"error": "secret"}, (INTERNAL, SERVER, None, "internal_error")),
        (500, {}, (INTERNAL, SERVER, None, "internal_error")),
        (501, {"error": "not yet"}, ("not yet", SERVER, None, "not_implemented")),
        (502, [1], (INTERNAL, SERVER, None, "bad_gateway")),
        (505, {"error": "old"}, ("old", SERVER, None, "http_version_not_supported")),
    ],
)
def test_shapes(status: int, body: Any, shaped: tuple[str, str, str | None, str]) -> None:
    names = ("message", "type", "param", "code")
    assert foreign_body(status, body) == (status, {"error": dict(zip(names, shaped, strict=True))})


@pytest.mark.parametrize("status", [400, 422, 500, 503])
def test_ours_stay_as_they_are(status: int) -> None:
    body = {"type": "error", "error": OURS}
    assert foreign_body(status, body) == (400 if status == 422 else status, body)


def test_what_is_said_beside_an_error_stays() -> None:
    """Anthropic's clients read the type of the object around the error."""
    _, shaped = foreign_body(422, {"type": "error", "error": "no", "detail": "more"})
    assert shaped["type"] == "error"
    assert shaped["detail"] == "more"
    assert shaped["error"]["message"] == "no"


@pytest.mark.parametrize("status", KINDS)
def test_a_status_is_found_again(status: int) -> None:
    _, body = foreign_body(status, {"error": "no"})
    assert status_of(body["error"]) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 404}, 404),
        ({"code": "model_not_found"}, 404),
        ({"code": "x", "type": "rate_limit_error"}, 429),
        ({"code": "x", "type": "service_unavailable_error"}, 503),
        ({"code": "x", "type": CLIENT}, 400),
        ({"code": "x", "type": SERVER}, 500),
        ({"code": None, "type": CLIENT}, 400),
        ({}, 500),
    ],
)
def test_statuses(error: dict[str, Any], status: int) -> None:
    assert status_of(error) == status
