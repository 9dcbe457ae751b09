"""The exceptions of divserve, one tree.

DivserveError
├── StartupError          the server cannot start as asked: one line on stderr, exit code 2
└── ApiError              becomes OpenAI error JSON in ``divserve.http.errors``
    ├── InvalidRequest    400: the client can fix it; ``param`` names the field
    │   ├── Unauthorized          401: no key, or one that the server does not know
    │   ├── NoDocument            400: the part that the guide lacks is not in the request
    │   ├── NotFound              404: no such model
    │   ├── RequestTimeout        408: the body took too long to arrive
    │   ├── RequestTooLarge       413: the body has too many bytes
    │   └── UnsupportedMediaType  415: the body has a type that the route does not read
    ├── TooManyRequests   429: this client, or all clients together, ask too much; try again later
    ├── DecodingFailed    500: the method could not be applied; no plain token was sent instead
    ├── Unavailable       503: what the request needs has stopped; the rest of the server works
    └── StorageFull       507: the disk of the batches is full
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from pydantic import ValidationError

__all__ = [
    "ApiError", "DecodingFailed", "DivserveError", "InvalidRequest", "NoDocument", "NotFound",
    "RequestTimeout", "RequestTooLarge", "StartupError", "StorageFull", "TooManyRequests",
    "Unauthorized",
    "Unavailable", "UnsupportedMediaType", "one_line",
]  # fmt: skip


class DivserveError(Exception):
    """Root of every exception that divserve raises on purpose."""


class StartupError(DivserveError):
    """The server cannot start with these arguments, versions or hardware."""


class ApiError(DivserveError):
    """An error that the client sees as OpenAI error JSON."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    retry_after_s: float | None = None
    """When to try again; None if that would not help."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s


class InvalidRequest(ApiError):
    """The request cannot be served as it stands; the message says what to change."""

    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"
    default_code = "invalid_value"


class Unauthorized(InvalidRequest):
    """The request has no key that the server knows."""

    status = HTTPStatus.UNAUTHORIZED
    default_code = "invalid_api_key"


class NoDocument(InvalidRequest):
    """The request does not have the part that its guide is to lack."""


class NotFound(InvalidRequest):
    """The request names a model that the server does not have."""

    status = HTTPStatus.NOT_FOUND
    default_code = "model_not_found"


class RequestTimeout(InvalidRequest):
    """The body did not arrive in time; the server does not wait for the rest."""

    status = HTTPStatus.REQUEST_TIMEOUT
    default_code = "request_timeout"


class RequestTooLarge(InvalidRequest):
    """The body has more bytes than the server reads."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    default_code = "request_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The route does not read the body's content type."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    default_code = "unsupported_content_type"


class TooManyRequests(ApiError):
    """The same request may succeed later."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class DecodingFailed(ApiError):
    """A token could not be decoded with the method asked for, so the request ends here."""

    default_code = "decoding_failed"


class Unavailable(ApiError):
    """A part of the server that the request needs has stopped."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "service_unavailable_error"
    default_code = "engine_unavailable"


class StorageFull(ApiError):
    """The disk on which files and batches are kept has no room."""

    status = HTTPStatus.INSUFFICIENT_STORAGE
    default_code = "insufficient_storage"


def one_line(error: Exception) -> str:
    """The message of one of vLLM's exceptions in one line; pydantic's own text has several."""
    if isinstance(error, ValidationError):
        return "; ".join(" ".join(detail["msg"].split()) for detail in error.errors())
    return " ".join(str(error).split())
