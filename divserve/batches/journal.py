"""The answers of a batch, one JSON object a line, which are also the record of what was answered.

A line of the input has been answered if and only if a whole line with its ``custom_id`` is in one
of the two files. So there is no second record that could disagree after a crash. All functions
block; an answer may be appended by any thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from divserve.batches.tokens import tokens_in

__all__ = ["ERRORS", "OUTPUT", "Journal", "key_of"]

OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"
SYNC_S = 1.0
"""Longest time for which an answer may be in the memory of the kernel only: a loss of power may
undo so much work, which is then done again. The end of the process undoes nothing."""


def key_of(custom_id: str) -> bytes:
    """16 bytes that stand for a ``custom_id``, whatever its length."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass
class Journal:
    """Opens the files, drops what a crash has torn, and knows what was answered.

    Args:
        folder: of the batch.

    Raises:
        OSError: they cannot be read or written.
    """

    folder: Path
    done: set[bytes] = field(default_factory=set)
    """Keys of the ``custom_id`` of all lines that have been answered."""
    completed: int = 0
    failed: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    """Of all answers, as `tokens_in` names them."""

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._synced = time.monotonic()
        self._files = {name: _Appended(self.folder / name) for name in (OUTPUT, ERRORS)}
        for name, file in self._files.items():
            for record in file.recover():
                self._count(record, name)

    def append(self, record: Mapping[str, Any], *, failed: bool) -> None:
        """Appends an answer as a whole, or not at all; once, however often it is called.

        Args:
            record: a line of the results; it is written in ASCII, as some readers take more than a
                line feed for the end of a line.
            failed: whether it belongs to the errors.

        Raises:
            OSError: it was not written, or not made durable; it may be tried again.
        """
        name = ERRORS if failed else OUTPUT
        text = json.dumps(record).encode() + b"\n"
        with self._lock:
            if key_of(record["custom_id"]) not in self.done:
                self._files[name].append(text)
                self._count(record, name)
            if time.monotonic() - self._synced >= SYNC_S:
                self._sync()

    def close(self) -> None:
        """Makes all of it durable, and closes the files."""
        with self._lock:
            try:
                self._sync()
            finally:
                for file in self._files.values():
                    file.close()

    def _count(self, record: Mapping[str, Any], name: str) -> None:
        self.done.add(key_of(record["custom_id"]))
        self.tokens += tokens_in(record)
        if name == OUTPUT:
            self.completed += 1
        else:
            self.failed += 1

    def _sync(self) -> None:
        for file in self._files.values():
            file.sync()
        self._synced = time.monotonic()


class _Appended:
    """One file that only grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+", buffering=0)
        self._path = path
        self._size = 0

    def recover(self) -> Iterator[dict[str, Any]]:
        """Each whole line; cuts the file at the first that is none."""
        with self._path.open("rb") as file:
            for line in file:
                record = _whole(line)
                if record is None:
                    break
                self._size += len(line)
                yield record
        self._file.truncate(self._size)

    def append(self, record: bytes) -> None:
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(record)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _whole(line: bytes) -> dict[str, Any] | None:
    """A whole line; None for a torn one."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    known = isinstance(value, dict) and isinstance(value.get("custom_id"), str)
    return value if known else None
