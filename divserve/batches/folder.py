"""The folder of the batches: ids, files that are replaced as a whole, and the bytes in use.

    files/file-….json      what clients see of a file, and whose it is
    files/file-….jsonl     its content
    batches/batch_…/       one batch (`divserve.batches.store`)
    incoming/              what is being written
    owner.lock             held by the process that runs the batches

All functions block: on the event loop they run in threads.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from divserve.errors import StartupError, StorageFull

__all__ = [
    "BATCH_ID", "FILE_ID", "Folder", "is_full", "new_id", "prepare", "remove", "storing",
    "sync", "write_whole",
]  # fmt: skip

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")
"""Ids become names of files, so nothing else is looked up."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
STALE_S = 6 * 3600.0
"""Age from which what is in ``incoming`` was left behind by a process that has ended."""


class Folder:
    """The paths below the folder of ``--batch-dir``.

    Args:
        root: the folder, prepared by `prepare`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files, self.batches = root / "files", root / "batches"
        self.incoming, self.lock = root / "incoming", root / "owner.lock"

    def used(self) -> int:
        """Bytes of all files in it; a file with two names counts once."""
        sizes: dict[int, int] = {}
        for path, _, names in os.walk(self.root):
            for name in names:
                # Another process may remove it at any time.
                with suppress(FileNotFoundError):
                    stat = Path(path, name).stat()
                    sizes[stat.st_ino] = stat.st_size
        return sum(sizes.values())

    def tidy(self) -> None:
        """Removes what processes that were killed have left behind."""
        oldest = time.time() - STALE_S
        halves = [path for path in self.files.iterdir() if not _is_whole(path)]
        for path in (*self.incoming.iterdir(), *halves):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    remove(path)


def prepare(root: Path) -> None:
    """Makes the folder if it is not there.

    Raises:
        StartupError: it cannot be made or written, or its file system has no hard links.
    """
    folder = Folder(root)
    try:
        for path in (folder.files, folder.batches, folder.incoming):
            path.mkdir(parents=True, exist_ok=True)
        probe = folder.incoming / new_id("probe-")
        probe.write_bytes(b"")
        linked = probe.with_suffix(".link")
        linked.hardlink_to(probe)
        linked.unlink()
        probe.unlink()
    except OSError as error:
        raise StartupError(f"--batch-dir {root}: {error.strerror}") from error


def new_id(prefix: str) -> str:
    """A new id; ids of one prefix sort by the time at which they were made."""
    return f"{prefix}{time.time_ns():016x}{secrets.token_hex(8)}"


def _is_whole(path: Path) -> bool:
    """Whether something in ``files`` is a description, or a content that has one."""
    return not path.name.startswith(".") and path.with_suffix(".json").exists()


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Writes or replaces a file, which is never seen half-written.

    Args:
        path: where.
        data: its content.
        durable: whether it must be on the disk before this returns.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file durable, or the names in a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove(path: Path) -> None:
    """Removes a file, or a folder of files."""
    if path.is_dir():
        for inner in path.iterdir():
            inner.unlink(missing_ok=True)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def is_full(error: OSError) -> bool:
    """Whether an error means that the disk has no room."""
    return error.errno in FULL


@contextmanager
def storing() -> Iterator[None]:
    """Turns a full disk into the error that clients get.

    Raises:
        StorageFull: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise StorageFull(
            "The server's disk is full: delete files that you no longer need "
            "(DELETE /v1/files/{id}), or ask the operator for more room."
        ) from error
