"""Errors as OpenAI JSON: the one place that turns our exceptions into responses.

    {"error": {"message": str, "type": str, "param": str | null, "code": str}}

`ApiError` carries its own status; a body that does not validate is a 400 (never FastAPI's 422)
whose ``param`` is the path of the field in the body, such as ``decoding.alpha``. Errors raised
elsewhere (vLLM's have the HTTP status as their ``code``) get this shape in `divserve.http.foreign`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from divserve.decoding import METHODS
from divserve.errors import (
    ApiError,
    InvalidRequest,
    RequestTimeout,
    Unauthorized,
    UnsupportedMediaType,
)
from divserve.http.foreign import foreign_body
from divserve.http.openai import clean_loc_for_param

__all__ = ["ErrorBody", "error_body", "error_response", "install", "invalid_body"]

CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "guide_missing": "missing_required_parameter",
    "union_tag_not_found": "missing_required_parameter",
}
"""OpenAI's code of a pydantic error type; all others are ``invalid_value``."""

SUFFIXES = {
    "guide_long": "without",
    "guide_missing": "guide",
    "guide_unused": "guide",
    "gate_choice": "s0",
    "union_tag_invalid": "method",
    "union_tag_not_found": "method",
}
"""Errors that pydantic reports for the object although they concern one of its fields."""


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every error response (for /openapi.json)."""

    error: Error


def error_body(error: ApiError) -> dict[str, Any]:
    """The OpenAI error object of `error`."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError) -> JSONResponse:
    """The HTTP response of `error`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(ceil(error.retry_after_s))
        headers["Retry-After-Ms"] = str(ceil(error.retry_after_s * 1000))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RequestTimeout):
        # The rest of the body is still to come and would be taken for the next request.
        headers["Connection"] = "close"
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def invalid_body(errors: Sequence[Any]) -> InvalidRequest:
    """The 400 for a body that did not validate.

    Args:
        errors: pydantic's error dicts, at least one; vLLM also raises plain strings (wrong
            content type).
    """
    first, others = errors[0], len(errors) - 1
    if not isinstance(first, Mapping):
        return UnsupportedMediaType(str(first))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return InvalidRequest(f"The body is not valid JSON: {reason}", code="invalid_json")
    param = _param(first)
    message = f"{param}: {_message(first)}" if param else _message(first)
    if others:
        message += f" (and {others} more)"
    return InvalidRequest(message, param=param, code=CODES.get(first["type"]))


def _param(error: Mapping[str, Any]) -> str | None:
    """The path of the field in the body, without "body" and the tag of the method union."""
    loc = list(error["loc"])
    if loc[:1] == ["body"]:
        del loc[0]
    if loc[:1] == ["decoding"]:
        loc = _without_tags(loc)
    if suffix := SUFFIXES.get(error["type"]):
        loc.append(suffix)
    if error["type"] == "guide_empty":
        loc.append(error["ctx"]["name"])
    return clean_loc_for_param(tuple(loc)) or None


def _without_tags(loc: list[Any]) -> list[Any]:
    """The path as in the body: ["decoding", "list", 0, "cad", "alpha"] is decoding.0.alpha."""
    shape, rest = loc[1:2], loc[2:]
    index = rest[:1] if shape == ["list"] else []
    rest = rest[len(index) :]
    return ["decoding", *index, *(rest[1:] if rest[:1] and rest[0] in METHODS else rest)]


def _message(error: Mapping[str, Any]) -> str:
    known = ", ".join(METHODS)
    match error["type"]:
        case "union_tag_invalid":
            return f"unknown method {error['ctx']['tag']!r}; the methods are {known}"
        case "union_tag_not_found":
            return f"names no method; the methods are {known}"
        case "extra_forbidden":
            return "unknown field"
    return str(error["msg"])


def install(app: FastAPI) -> None:
    """Registers the handlers on `app`, in place of vLLM's for the same exceptions."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(cast(ApiError, error))

    async def on_invalid_body(request: Request, error: Exception) -> JSONResponse:
        return error_response(invalid_body(cast(RequestValidationError, error).errors()))

    async def on_http_exception(request: Request, raised: Exception) -> JSONResponse:
        error = cast(StarletteHTTPException, raised)
        message = error.detail
        asked = f"{request.method} {request.url.path}"
        if error.status_code == 404 and message == "Not Found":
            message = f"There is no {asked} here; /openapi.json lists the routes."
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = f"There is no {asked}: this route takes {allowed}."
        status, body = foreign_body(error.status_code, {"error": message})
        return JSONResponse(body, status_code=status, headers=error.headers)

    app.add_exception_handler(ApiError, on_api_error)
    # FastAPI's is a subclass, for which vLLM has its own handler.
    app.add_exception_handler(StarletteHTTPException, on_http_exception)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
