"""Bodies are bounded before they are validated: in time, bytes, depth, items and requested work.

A large body is examined in a thread, so that the event loop goes on.
"""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from divserve.edges.flags import EdgeSettings
from divserve.errors import (
    ApiError,
    InvalidRequest,
    RequestTimeout,
    RequestTooLarge,
    UnsupportedMediaType,
)
from divserve.http.asgi import EMPTY, is_json, read_body, replay
from divserve.http.errors import error_response
from divserve.http.fields import check_fields, check_rows, rows_of_fields
from divserve.http.items import check_input, check_items
from divserve.http.paths import BODILESS, FILES, GUIDED_ROUTES, RESPONSES, path_of, takes_body
from divserve.http.scope import hold, weigh

__all__ = ["GuardBody", "check_coding", "check_depth", "check_text", "in_utf8"]

LARGE = 65_536
"""Bytes from which a body is examined in a thread: the work of about a millisecond."""

ONE_KIND = bytes.maketrans(b"{}", b"[]")
NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..", re.DOTALL)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


class GuardBody:
    """Pure ASGI middleware; the routes get the body unchanged, and no body where none takes it.

    The rows of the guided routes are counted in the routes, which know the guides.
    """

    def __init__(self, app: ASGIApp, settings: EdgeSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in BODILESS:
            await self.app(scope, receive, send)
            return
        if not takes_body(scope):
            await self.app(scope, replay([EMPTY], receive), send)
            return
        try:
            check_coding(scope)
            receive = await self._checked(scope, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """What the route reads the body from, once that is known to be within the limits."""
        if _is_upload(scope):
            # Larger than any other body: its route bounds it, and writes it to the disk.
            weigh(scope, 0)
            return receive
        messages = await self._read(scope, receive)
        if is_json(scope):
            body = b"".join(message.get("body", b"") for message in messages)
            if len(body) > LARGE:
                rows = await asyncio.to_thread(self._rows, scope, body)
            else:
                rows = self._rows(scope, body)
            weigh(scope, rows)
        return replay(messages, receive)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message]:
        limit, timeout_s = self.settings.max_body_bytes, self.settings.body_timeout
        declared = Headers(scope=scope).get("content-length", "0")
        messages = None
        if not declared.isdecimal() or int(declared) <= limit:
            try:
                # For the whole body: one byte now and then would hold a row of the queue forever.
                async with asyncio.timeout(timeout_s):
                    messages = await read_body(receive, limit, partial(hold, scope))
            except TimeoutError:
                raise RequestTimeout(
                    f"The body took longer than {timeout_s:g} s: send it faster, or start the "
                    "server with a larger --body-timeout."
                ) from None
        if messages is None:
            raise RequestTooLarge(
                f"The body has more than {limit} bytes: send less, or start the server with a "
                "larger --max-body-bytes."
            )
        return messages

    def _rows(self, scope: Scope, body: bytes) -> int:
        """Rows that the request takes, as far as they are known here.

        Raises:
            InvalidRequest: the body is beyond one of the limits.
        """
        text = in_utf8(body)
        check_depth(text, self.settings.max_json_depth)
        check_text(text)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            # The route reports it with its own message.
            return 1
        check_items(value, len(text), self.settings)
        if not isinstance(value, dict):
            return 1
        nested = value.get("sampling_params")
        for fields in (value, nested) if isinstance(nested, dict) else (value,):
            check_fields(fields.get, self.settings)
        path = path_of(scope).rstrip("/")
        if path.startswith(RESPONSES):
            check_input(value.get("input"))
        if path in GUIDED_ROUTES:
            return 1
        rows = rows_of_fields(value)
        check_rows(rows, value.get, self.settings)
        return rows


def _is_upload(scope: Scope) -> bool:
    media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "multipart/form-data" and path_of(scope) == FILES


def check_coding(scope: Scope) -> None:
    """Raises `UnsupportedMediaType` if the body is compressed."""
    coding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedMediaType(
            f"The body has the content-encoding {coding[:20]!r}: send it uncompressed."
        )


def check_depth(body: bytes, limit: int) -> None:
    """Raises `InvalidRequest` if a JSON text is nested more deeply than `limit`.

    Args:
        body: in UTF-8.
        limit: brackets that may be open at the same time.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    brackets = _brackets(body)
    for _ in range(limit):
        if b"[]" not in brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets:
        raise InvalidRequest(
            f"The body is nested more than {limit} levels deep: flatten it, or start the server "
            "with a larger --max-json-depth.",
            code="invalid_json",
        )


def check_text(body: bytes) -> None:
    """Raises `InvalidRequest` if a JSON text has half a surrogate pair.

    Python accepts it, but no tokenizer does, and an answer or log line that quotes it cannot be
    encoded.

    Args:
        body: in UTF-8.
    """
    if SURROGATE.search(body) and SURROGATE.search(PAIR.sub(b"_", body.replace(rb"\\", b"__"))):
        raise InvalidRequest(
            "The body has half of a surrogate pair (a character cut in two, such as \\ud83d "
            "alone): send whole characters.",
            code="invalid_json",
        )


def in_utf8(body: bytes) -> bytes:
    """The searchable UTF-8 bytes of a JSON text in any encoding that ``json.loads`` reads.

    Raises:
        InvalidRequest: it is in none of them.
    """
    encoding = json.detect_encoding(body)
    try:
        text = body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: byte {error.start} is not {encoding.upper()} "
            "(a body is sent in UTF-8).",
            code="invalid_json",
        ) from None
    return body if encoding.startswith("utf-8") else text.encode(errors="surrogatepass")


def _brackets(body: bytes) -> bytes:
    """The brackets of a JSON text outside its strings, all mapped to one kind.

    Uses operations on whole bodies: a loop over the tokens of a hostile body takes seconds.
    """
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    # The end of one string next to the start of another: the two cancel.
    marks = unescaped.translate(ONE_KIND, NO_MARKS).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2])
