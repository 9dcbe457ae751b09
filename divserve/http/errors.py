"""Errors as OpenAI JSON: the one place that turns our exceptions into responses.

    {"error": {"message": str, "type": str, "param": str | null, "code": str}}

`ApiError` carries its own status; a body that does not validate is a 400 (never FastAPI's 422)
whose ``param`` is the path of the field in the body, such as ``decoding.alpha``. Errors raised
elsewhere (vLLM's have the HTTP status as their ``code``) get this shape in `divserve.http.foreign`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import ceil
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException

from divserve.decoding import METHODS, Guide, PresetRef, Selector
from divserve.decoding.trace import Trace
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
    "markers_equal": "between",
    "nothing_missing": "if_missing",
    "gate_choice": "s0",
    "union_tag_invalid": "method",
    "union_tag_not_found": "method",
}
"""Errors that pydantic reports for the object although they concern one of its fields."""

UNIONS = ("input", "messages", "response_format", "system", "text", "tool_choice", "tools")
"""Fields of one of several types; pydantic puts the name of the type into the path."""
CLASS = re.compile(r"[A-Z][A-Za-z]+")

METHOD_FIELDS = frozenset({"decoding", "method"})
"""Fields at the top of a body that hold methods."""
LONGEST_NAME = 64
"""Characters of an unknown name that are compared with the known ones."""
MESSAGES = {
    "extra_forbidden": "unknown field",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "int_parsing": "Input should be an integer",
    "int_parsing_size": "Input should be an integer of 64 bits",
    "int_type": "Input should be an integer",
    "int_from_float": "Input should be an integer",
    "float_parsing": "Input should be a number",
    "float_type": "Input should be a number",
}
"""What replaces pydantic's words, where those are about Python."""


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
        return _invalid_json(first.get("ctx", {}).get("error", ""))
    param = _param(first)
    message = f"{param}: {_message(first)}" if param else _message(first)
    if others:
        message += f" (and {others} more)"
    return InvalidRequest(message, param=param, code=CODES.get(first["type"]))


def _invalid_json(reason: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid JSON: {reason}", code="invalid_json")


def _param(error: Mapping[str, Any]) -> str | None:
    """The path of the field in the body, without "body" and the tag of the method union."""
    loc = list(error["loc"])
    if loc[:1] == ["body"]:
        del loc[0]
    if loc[:1] and loc[0] in METHOD_FIELDS:
        loc = _without_tags(loc)
    if suffix := SUFFIXES.get(error["type"]):
        loc.append(suffix)
    if error["type"] == "guide_empty":
        loc.append(error["ctx"]["name"])
    if loc[:1] and loc[0] in UNIONS:
        loc = [part for part in loc if not CLASS.fullmatch(str(part))]
    param = clean_loc_for_param(tuple(loc))
    # With nothing but internal markers in it, the path comes back as it was.
    return None if not param or "[" in param else param


def _without_tags(loc: list[Any]) -> list[Any]:
    """The path as in the body: ["decoding", "list", 0, "cad", "alpha"] is decoding.0.alpha."""
    field, shape, rest = loc[0], loc[1:2], loc[2:]
    index = rest[:1] if shape == ["list"] else []
    rest = rest[len(index) :]
    return [field, *index, *(rest[1:] if rest[:1] and rest[0] in METHODS else rest)]


def _message(error: Mapping[str, Any]) -> str:
    known = ", ".join(METHODS)
    kind, loc = error["type"], error["loc"]
    message = MESSAGES.get(kind, str(error["msg"]))
    match kind:
        case "union_tag_invalid":
            tag = error["ctx"]["tag"]
            return f"unknown method {tag!r}{_hint(tag, METHODS)}; the methods are {known}"
        case "union_tag_not_found":
            return f"names no method; the methods are {known}"
        case "extra_forbidden":
            return message + _hint(str(loc[-1]), _fields_beside(loc))
        case "model_attributes_type" if _method_goes_here(loc):
            return f"{message}, such as {json.dumps(_example(error['input']))}"
    return message


def _hint(given: str, known: Iterable[str]) -> str:
    close = get_close_matches(given[:LONGEST_NAME], known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _fields_beside(loc: Sequence[Any]) -> Iterable[str]:
    """The fields that a method or its guide takes at the path of an unknown one."""
    beside = (("guide", Guide), ("trace", Trace), ("preset", PresetRef))
    for name, model in beside:
        if loc[-2:-1] == (name,):
            return model.model_fields
    if "first_of" in loc:
        return Selector.model_fields
    method = next((METHODS[part] for part in loc[:-1] if part in METHODS), None)
    return () if method is None else method.model_fields


def _method_goes_here(loc: Sequence[Any]) -> bool:
    """Whether the path is that of a whole method."""
    return not METHOD_FIELDS.isdisjoint(loc[:2]) and "guide" not in loc


def _example(given: Any) -> dict[str, Any]:
    """A method as it is written: the one whose name was given instead of an object, if any."""
    name = given if isinstance(given, str) and given in METHODS else "cad"
    guide = {"guide": {"without": "the document"}} if METHODS[name].needs_guide() else {}
    return {"method": name, **guide}


def install(app: FastAPI) -> None:
    """Registers the handlers on `app`, in place of vLLM's for the same exceptions."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        return error_response(cast(ApiError, error))

    async def on_invalid_body(request: Request, error: Exception) -> JSONResponse:
        return error_response(invalid_body(cast(RequestValidationError, error).errors()))

    async def on_http_exception(request: Request, raised: Exception) -> JSONResponse:
        error = cast(StarletteHTTPException, raised)
        if isinstance(error.__cause__, json.JSONDecodeError):
            # Of a route that parses its body itself.
            return error_response(_invalid_json(error.__cause__.msg))
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
