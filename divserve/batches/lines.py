"""The lines of an input file, read a few at a time. All functions block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from openai.types import BatchError

from divserve.batches.journal import key_of

__all__ = ["BadLine", "Check", "Line", "chunks", "parse"]

CHUNK_BYTES = 256 * 1024
"""What is read before other work gets its turn: some milliseconds of parsing."""
CHUNK_LINES = 64
MOST_ERRORS = 100
"""Errors that a batch tells of; a file of the wrong kind has one in every line."""
LONGEST_ID = 512
MARK = b"\xef\xbb\xbf"


class BadLine(ValueError):
    """A line that no request can be made of.

    Args:
        code: of the error, in OpenAI's words where they have one.
        message: what to change.
        param: the field.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


@dataclass(frozen=True)
class Line:
    """One request of a batch."""

    number: int
    """From 1, with blank lines counted."""
    custom_id: str
    body: dict[str, Any]

    @property
    def key(self) -> bytes:
        """What the journal knows it by."""
        return key_of(self.custom_id)


def chunks(path: Path, longest: int) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that are not blank, with their numbers, some at a time.

    Args:
        path: of the file.
        longest: most bytes of a line; of a longer one this and one byte more is returned.
    """
    with path.open("rb") as file:
        found: list[tuple[int, bytes]] = []
        size = 0
        for number, line in enumerate(_lines(file, longest), 1):
            text = line.removeprefix(MARK).strip() if number == 1 else line.strip()
            size += len(line)
            if text:
                found.append((number, text))
            if size >= CHUNK_BYTES or len(found) >= CHUNK_LINES:
                yield found
                found, size = [], 0
        yield found


def _lines(file: BinaryIO, longest: int) -> Iterator[bytes]:
    while line := file.readline(longest + 1):
        yield line
        while len(line) > longest and not line.endswith(b"\n"):
            line = file.readline(longest + 1)


def parse(number: int, text: bytes, endpoint: str, longest: int) -> Line:
    """The request of a line.

    Args:
        number: of the line.
        text: its JSON.
        endpoint: that of the batch.
        longest: most bytes of a line.

    Raises:
        BadLine: it is none for this batch.
    """
    if len(text) > longest:
        raise BadLine("line_too_long", f"The line has more than {longest} bytes.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadLine("invalid_json_line", f"The line is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadLine("invalid_json_line", "The line is not a JSON object.")
    custom_id, method, url = (value.get(name) for name in ("custom_id", "method", "url"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        told = f"custom_id: a string of 1 to {LONGEST_ID} characters is required."
        raise BadLine("invalid_custom_id", told, "custom_id")
    if method != "POST":
        raise BadLine("invalid_method", 'method: must be "POST".', "method")
    if url != endpoint:
        told = f"url: must be the endpoint of the batch, {endpoint!r}."
        raise BadLine("mismatched_url", told, "url")
    if not isinstance(body := value.get("body"), dict):
        raise BadLine("invalid_body", "body: an object is required.", "body")
    return Line(number, custom_id, body)


@dataclass
class Check:
    """What is known of the lines that have been checked.

    Args:
        endpoint: of the batch.
        longest: most bytes of a line.
        most: most lines of a batch.
    """

    endpoint: str
    longest: int
    most: int
    total: int = 0
    errors: list[BatchError] = field(default_factory=list)
    """None if the batch can run."""
    seen: set[bytes] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    """At most two: whether there is one is all that is asked."""

    def add(self, lines: list[tuple[int, bytes]]) -> bool:
        """Checks more lines; False once there are so many errors that the rest need not be read."""
        for number, text in lines:
            self.total += 1
            try:
                if self.total > self.most:
                    told = f"The file has more than {self.most} lines (--batch-max-lines)."
                    raise BadLine("too_many_lines", told)
                self._know(parse(number, text, self.endpoint, self.longest))
            except BadLine as bad:
                self.errors.append(
                    BatchError(code=bad.code, message=bad.message, param=bad.param, line=number)
                )
                if len(self.errors) >= MOST_ERRORS or bad.code == "too_many_lines":
                    return False
        return True

    def end(self) -> None:
        """Called after the last line."""
        if not self.total:
            self.errors.append(BatchError(code="empty_file", message="The file has no lines."))

    def _know(self, line: Line) -> None:
        if line.key in self.seen:
            told = f"custom_id: {line.custom_id!r} is that of an earlier line."
            raise BadLine("duplicate_custom_id", told, "custom_id")
        self.seen.add(line.key)
        model = line.body.get("model")
        if len(self.models) < 2:
            self.models.add(model if isinstance(model, str) else "")
