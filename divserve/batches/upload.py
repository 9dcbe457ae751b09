"""A multipart upload on its way to the disk: a piece of it at most is in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from divserve.batches.folder import storing
from divserve.errors import InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedMediaType

__all__ = ["Upload", "receive"]

PIECE = 1024 * 1024
"""Bytes that are collected before they are written, and that must arrive in time."""
CHECK_EVERY = 16 * PIECE
"""Bytes after which the room on the disk is checked again."""
MOST_PARTS = 8
LONGEST_FIELD = 1024
LONGEST_NAME = 255
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Upload:
    """The form as far as it has been read.

    Args:
        boundary: between its parts.
        most: largest file, in bytes.
    """

    def __init__(self, boundary: bytes, most: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """Of the part ``file``; None while it has not come."""
        self.pieces: list[bytes] = []
        """Bytes of the file that are to be written."""
        self.waiting = 0
        self.size = 0
        """Bytes of the file so far."""
        self.ended = False
        self._most = most
        self._parts = 0
        self._name, self._field, self._header = "", b"", b""
        self._disposition = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )

    def feed(self, data: bytes) -> None:
        """Reads more of the body.

        Raises:
            InvalidRequest: it is not such a form.
            RequestTooLarge: the file is too large.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"The body is not a valid form: {error}") from None

    def take(self) -> list[bytes]:
        """The bytes that are to be written, no longer kept here."""
        taken, self.pieces, self.waiting = self.pieces, [], 0
        return taken

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise InvalidRequest(f"The form has more than {MOST_PARTS} parts.")
        self._name, self._field, self._header, self._disposition = "", b"", b"", b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition += data[start:end]

    def _end_header(self) -> None:
        self._header = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        if self._name == "file":
            if self.filename is not None:
                raise InvalidRequest("file: send one.", param="file")
            self.filename = _shown(options.get(b"filename", b"").decode(errors="replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name != "file":
            self._field += data[start:end]
            if len(self._field) > LONGEST_FIELD:
                raise InvalidRequest(f"{self._name[:64]}: too long.", param=self._name[:64])
            return
        self.size += end - start
        if self.size > self._most:
            raise RequestTooLarge(
                f"The file has more than {self._most} bytes: split it, or start the server with a "
                "larger --batch-max-file-bytes.",
                param="file",
            )
        self.pieces.append(data[start:end])
        self.waiting += end - start

    def _end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._field.decode(errors="replace")

    def _all(self) -> None:
        self.ended = True


def _shown(name: str) -> str:
    """A file's name, without folders and control characters."""
    plain = CONTROL.sub("", PurePosixPath(name.replace("\\", "/")).name)
    return plain[:LONGEST_NAME] or "upload.jsonl"


async def receive(
    request: Request, path: Path, most: int, piece_s: float, check: Callable[[], None]
) -> Upload:
    """Writes the file of an upload.

    Args:
        request: whose body is the form; nothing of it has been read.
        path: of the new file.
        most: its largest size, in bytes.
        piece_s: seconds in which each `PIECE` must arrive.
        check: called in a thread before the first byte and now and then; raises if there is no
            room.

    Raises:
        InvalidRequest: it is not such a form, or ends early.
        RequestTimeout: it comes too slowly.
        RequestTooLarge: the file is too large.
        StorageFull: the disk is full.
        UnsupportedMediaType: it is no form at all.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType("Send the file as multipart/form-data, with purpose=batch.")
    try:
        upload = Upload(options[b"boundary"], most)
    except FormParserError as error:
        raise InvalidRequest(f"The body is not a valid form: {error}") from None
    await to_thread.run_sync(check)
    body, checked = request.stream(), 0
    with await to_thread.run_sync(_new, path) as file:
        more = True
        while more:
            more = await _piece(upload, body, piece_s)
            await to_thread.run_sync(_write, file, upload.take())
            if upload.size - checked >= CHECK_EVERY:
                await to_thread.run_sync(check)
                checked = upload.size
    if not upload.ended:
        raise _ended_early()
    return upload


async def _piece(upload: Upload, body: AsyncIterator[bytes], piece_s: float) -> bool:
    """Reads until there is a piece to write; False if that was the end."""
    try:
        async with asyncio.timeout(piece_s):
            async for data in body:
                upload.feed(data)
                if upload.waiting >= PIECE:
                    return True
    except ClientDisconnect:
        raise _ended_early() from None
    except TimeoutError:
        raise RequestTimeout(
            f"{PIECE} bytes took longer than {piece_s:g} s: send them faster, or start the server "
            "with a larger --body-timeout."
        ) from None
    return False


def _ended_early() -> InvalidRequest:
    return InvalidRequest("The form ends early: send all of it.")


def _new(path: Path) -> BinaryIO:
    with storing():
        return path.open("xb")


def _write(file: BinaryIO, pieces: list[bytes]) -> None:
    with storing():
        file.writelines(pieces)
        file.flush()
