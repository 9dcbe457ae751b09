"""Converts errors that are not ours (vLLM's, FastAPI's, Starlette's) to OpenAI's shape.

vLLM's error objects have the HTTP status as their ``code`` and the name of a Python type as their
type. They keep their message and ``param``; type and code become OpenAI's. The message of a 500 is
for the log only and is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

__all__ = ["INTERNAL", "foreign_body", "status_of", "tell", "told_of"]

INTERNAL = "The server failed to answer this request; its log says why."

CLIENT, SERVER = "invalid_request_error", "server_error"
KINDS: dict[int, tuple[str, str]] = {
    400: (CLIENT, "invalid_value"),
    401: (CLIENT, "invalid_api_key"),
    403: (CLIENT, "forbidden"),
    404: (CLIENT, "not_found"),
    405: (CLIENT, "method_not_allowed"),
    409: (CLIENT, "conflict"),
    413: (CLIENT, "request_too_large"),
    415: (CLIENT, "unsupported_content_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: (SERVER, "internal_error"),
    501: (SERVER, "not_implemented"),
    503: ("service_unavailable_error", "service_unavailable"),
}
"""OpenAI's type and code for each status."""

STATUS_OF_CODE = {code: status for status, (_, code) in KINDS.items()} | {
    "model_not_found": 404,
    "context_length_exceeded": 400,
}
STATUS_OF_TYPE = {CLIENT: 400, "rate_limit_error": 429, "service_unavailable_error": 503}

TOLD = "divserve.told"

TOO_LONG = ("input_tokens", "input_text")
"""The ``param`` that vLLM reports for a prompt that exceeds the context."""


def foreign_body(status: int, body: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of an error in OpenAI's shape.

    Args:
        status: of the response.
        body: of the response: an object with ``error`` (an object or a string) or ``detail``, or
            a text that says why. Our own errors are returned unchanged.
    """
    status = 400 if status == 422 else status
    body = {"error": body} if isinstance(body, str) else body
    outer = dict(body) if isinstance(body, Mapping) else {}
    told = outer.pop("error", None) or outer.pop("detail", None)
    told = told if isinstance(told, Mapping) else {"message": told}
    if isinstance(told.get("code"), str) and "param" in told:
        return status, {**outer, "error": dict(told)}
    message = told.get("message")
    kind, code = KINDS.get(status) or (SERVER if status >= 500 else CLIENT, _phrase(status, "_"))
    if status == 500 or not isinstance(message, str) or not message:
        message = INTERNAL if status >= 500 else f"{_phrase(status, ' ').capitalize()}."
    param = told.get("param")
    if param in TOO_LONG or "maximum context length" in message:
        code = "context_length_exceeded"
    elif status == 404 and "model" in message and "does not exist" in message:
        param, code = "model", "model_not_found"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return status, {**outer, "error": error}


def status_of(error: Mapping[str, Any]) -> int:
    """The HTTP status of an error object in OpenAI's shape, or in vLLM's."""
    code = error.get("code")
    if isinstance(code, int):
        return code
    return STATUS_OF_CODE.get(code or "") or STATUS_OF_TYPE.get(error.get("type", ""), 500)


def tell(scope: MutableMapping[str, Any], error: Mapping[str, Any]) -> None:
    """Makes the error response of a request carry `error`, whatever its route returns.

    Args:
        scope: of the request.
        error: an error object in OpenAI's shape.
    """
    scope.setdefault("state", {})[TOLD] = error


def told_of(scope: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The error that `tell` was given for this request."""
    found: Mapping[str, Any] | None = scope.get("state", {}).get(TOLD)
    return found


def _phrase(status: int, space: str) -> str:
    try:
        return HTTPStatus(status).phrase.lower().replace(" ", space)
    except ValueError:
        return f"http{space}{status}"
