"""Reads the input: one line after another, so that its size does not matter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from divserve.errors import StartupError

__all__ = ["MOST_BYTES", "Line", "Source"]

MOST_BYTES = 64 * 2**20
"""Of a line; a longer one fails without being kept in memory."""
CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank."""

    number: int
    """From 1; blank lines count."""
    id: str | int | None
    body: dict[str, Any]
    """Of the request; empty if there is an error."""
    error: str | None = None
    """Why nothing can be asked."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of texts."""

    path: Path
    digest: str
    """BLAKE2 of its bytes."""
    count: int
    """Lines, the blank ones included."""

    @classmethod
    def of(cls, path: Path) -> Source:
        """Reads the file once.

        Raises:
            StartupError: it cannot be read.
        """
        digest, count, last = hashlib.blake2b(digest_size=16), 0, b"\n"
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    count += chunk.count(b"\n")
                    last = chunk[-1:]
        except OSError as error:
            raise StartupError(f"cannot read {path}: {error.strerror}") from None
        return cls(path, digest.hexdigest(), count + (last != b"\n"))

    def lines(self, fields: Mapping[str, Any], after: int = 0) -> Iterator[Line]:
        """Its lines behind line number `after`, completed by `fields`; those of a line win."""
        with self.path.open("rb") as file:
            for number, raw in enumerate(_raw(file), 1):
                if number > after and (raw is None or raw.strip()):
                    yield _line(number, raw, fields)


def _raw(file: BinaryIO) -> Iterator[bytes | None]:
    """Each line; None for one that is too long."""
    while raw := file.readline(MOST_BYTES + 1):
        if len(raw) <= MOST_BYTES:
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(CHUNK)
        yield None


def _line(number: int, raw: bytes | None, fields: Mapping[str, Any]) -> Line:
    if raw is None:
        return Line(number, None, {}, f"the line has more than {MOST_BYTES:,} bytes")
    try:
        given = json.loads(raw, parse_constant=_refuse_constant)
        # What is not Unicode (half of a surrogate pair) cannot be sent.
        json.dumps(given, ensure_ascii=False).encode()
    except RecursionError:
        return Line(number, None, {}, "the line is nested too deeply")
    except ValueError as error:
        return Line(number, None, {}, f"the line is not JSON: {error}")
    if not isinstance(given, dict):
        return Line(number, None, {}, "the line is not a JSON object")
    own = given.pop("id", None)
    if isinstance(own, bool) or not isinstance(own, str | int | None):
        return Line(number, None, {}, "'id' must be a string or an integer")
    return Line(number, own, {**fields, **given})


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
