"""API keys: from flags and from a file that may change while the server runs."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from divserve.errors import StartupError

__all__ = ["KeyRing", "check_given", "read_keys"]

logger = logging.getLogger("vllm.divserve.edges")

CHECK_EVERY_S = 0.5
NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")

Keys = dict[bytes, str]
"""Names by the SHA-256 of their key: the keys themselves are not kept."""


def read_keys(path: Path) -> Keys:
    """The keys of a file: ``KEY`` or ``NAME:KEY`` per line; a key with a colon needs a name.

    Empty lines are ignored, and so are a byte order mark and what follows a ``#`` at the start of a
    line or after a space.

    Raises:
        ValueError: a line is neither.
        OSError: the file cannot be read.
    """
    keys: Keys = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        text = line.partition(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        first, colon, rest = (part.strip() for part in text.partition(":"))
        name, key = (first, rest) if colon else ("", first)
        if (colon and not NAME.fullmatch(name)) or not key or re.search(r"\s", key):
            # The line itself would put a secret into the log.
            raise ValueError(f"line {number} is neither KEY nor NAME:KEY")
        digest = _digest(key.encode())
        keys[digest] = name or _nameless(digest)
    return keys


def check_given(keys: Sequence[str] | None) -> None:
    """Checks the keys that vLLM will read.

    Args:
        keys: those of ``--api-key``; without any, vLLM reads ``VLLM_API_KEY``.

    Raises:
        StartupError: one is empty, as where a variable is not set; vLLM would ignore it, and the
            server might be open.
    """
    flag, variable = "--api-key", "VLLM_API_KEY"
    if keys is None:
        flag, keys = variable, [os.environ[variable]] if variable in os.environ else []
    if not all(key.strip() for key in keys):
        raise StartupError(f"{flag}: the key is empty; set it, or leave it out for an open server")


class KeyRing:
    """The keys that the server accepts.

    Args:
        given: keys of the command line or the environment.
        file: more keys; read again when it changes.

    Raises:
        StartupError: the file holds no key, or cannot be read.
    """

    def __init__(self, given: Iterable[str] = (), file: Path | None = None) -> None:
        digests = [_digest(key.encode()) for key in given]
        self._given: Keys = {digest: _nameless(digest) for digest in digests}
        self._file = file
        self._seen: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self._missing = False
        """Whether the file was missing at the last look."""
        self._told = ""
        """What was last logged about the file; the same is not logged twice."""
        self._of_file: Keys = {}
        if file is not None:
            try:
                self._seen = _stamp(file)
                self._of_file = read_keys(file)
            except (OSError, ValueError) as error:
                raise StartupError(f"--api-key-file {file}: {_reason(error)}") from error
            if not self._of_file:
                raise StartupError(f"--api-key-file {file} holds no key")

    def __bool__(self) -> bool:
        """Whether keys are required; this stays true when a file has lost its last key."""
        return bool(self._given) or self._file is not None

    def name_of(self, key: bytes) -> str | None:
        """The name of a key, or None if it is not accepted. Takes equally long for every key."""
        self._look()
        asked, found = _digest(key), None
        for keys in (self._given, self._of_file):
            for digest, name in keys.items():
                if secrets.compare_digest(asked, digest):
                    found = name
        return found

    def reload(self) -> None:
        """Reads the file again; the keys stay as they are if it cannot be read."""
        self._told = ""
        if self._file is not None:
            self._read(self._file)

    def _read(self, file: Path) -> None:
        try:
            stamp = _stamp(file)
            self._of_file = read_keys(file)
        except OSError as error:
            # It may be readable at the next look.
            self._complain(error)
            return
        except ValueError as error:
            self._complain(error)
        else:
            self._told = ""
            logger.info("--api-key-file: %d keys", len(self._of_file))
        self._seen = stamp

    def _complain(self, error: Exception) -> None:
        if self._told != (reason := _reason(error)):
            logger.error("--api-key-file is not read again, old keys stay: %s", reason)
        self._told = reason

    def _look(self) -> None:
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + CHECK_EVERY_S
        try:
            stamp = _stamp(self._file)
        except OSError as error:
            # While the file is being replaced, there may be none.
            if self._missing:
                self._complain(error)
            self._missing = True
            return
        if self._missing:
            self._missing, self._told = False, ""
        if stamp != self._seen:
            self._read(self._file)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _nameless(digest: bytes) -> str:
    return f"key-{digest.hex()[:12]}"


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
