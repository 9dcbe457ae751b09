"""Files: what clients have uploaded, and the results of batches. All functions block."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from openai.types import FileObject
from pydantic import BaseModel, ValidationError

from divserve.batches.flags import BatchSettings
from divserve.batches.folder import FILE_ID, Folder, storing, sync, write_whole
from divserve.errors import InvalidRequest, NotFound

__all__ = ["FileStore", "StoredFile", "is_seen"]

logger = logging.getLogger("vllm.divserve.batches")

Purpose = Literal["batch", "batch_output"]
DAY_S = 86_400


class StoredFile(BaseModel):
    """A file and whose it is."""

    owner: str | None
    """The name of the key with which it was made; None without keys."""
    file: FileObject


def is_seen(owner: str | None, client: str | None) -> bool:
    """Whether a client sees what belongs to `owner`; without keys (None) it sees everything."""
    return client is None or owner == client


class FileStore:
    """The files.

    Args:
        folder: where they are.
        settings: the limits.
    """

    def __init__(self, folder: Folder, settings: BatchSettings) -> None:
        self.folder = folder
        self.settings = settings

    def path(self, file_id: str) -> Path:
        """Where the content of a file is."""
        return self.folder.files / f"{file_id}.jsonl"

    def get(self, file_id: str, client: str | None, param: str | None = None) -> FileObject:
        """What a client sees of a file.

        Raises:
            NotFound: there is none of this id that has not expired, or it is another client's.
        """
        stored = self._load(file_id) if FILE_ID.fullmatch(file_id) else None
        if stored is None or not is_seen(stored.owner, client) or _has_expired(stored):
            raise NotFound(
                f"There is no file {file_id[:64]!r}; /v1/files lists all.",
                param=param,
                code="not_found",
            )
        return stored.file

    def of_client(self, client: str | None, purpose: str | None = None) -> list[FileObject]:
        """The files that a client sees, those of one purpose or of all."""
        return [
            stored.file
            for stored in self._all()
            if is_seen(stored.owner, client)
            and not _has_expired(stored)
            and purpose in (None, stored.file.purpose)
        ]

    def check_room(self) -> None:
        """Checks whether one more file may be uploaded.

        Raises:
            InvalidRequest: there are too many files or bytes.
        """
        if sum(1 for _ in self.folder.files.glob("*.json")) >= self.settings.batch_max_files:
            raise _no_room(f"{self.settings.batch_max_files} files", "--batch-max-files")
        self.check_bytes()

    def check_bytes(self) -> None:
        """Likewise, bytes only."""
        if self.folder.used() >= (most := self.settings.batch_max_total_bytes):
            raise _no_room(f"{most} bytes", "--batch-max-total-bytes")

    def add(
        self,
        source: Path,
        file_id: str,
        owner: str | None,
        purpose: Purpose,
        filename: str,
        keep_s: int | None = None,
    ) -> FileObject:
        """Moves a file in; it is seen from then on. May be repeated after an interruption.

        Args:
            source: the content, on the same file system; may be missing if it was moved before.
            file_id: its new id.
            owner: whose it is.
            purpose: what it is for.
            filename: its name, for people.
            keep_s: seconds until it expires; the retention time if None.
        """
        target, now = self.path(file_id), int(time.time())
        with storing():
            if source.exists():
                sync(source)
                source.replace(target)
            keep_s = min(keep_s or self.keep_s, self.keep_s)
            made = FileObject(
                id=file_id,
                bytes=target.stat().st_size,
                created_at=now,
                expires_at=now + keep_s,
                filename=filename,
                object="file",
                purpose=purpose,
                status="processed",
            )
            stored = StoredFile(owner=owner, file=made)
            sync(self.folder.files)
            write_whole(self._described(file_id), stored.model_dump_json().encode())
        return made

    @property
    def keep_s(self) -> int:
        """Seconds for which a file is kept."""
        return self.settings.batch_retention_days * DAY_S

    def delete(self, file_id: str) -> None:
        """Removes a file; a batch that reads it has a link of its own."""
        self._described(file_id).unlink(missing_ok=True)
        self.path(file_id).unlink(missing_ok=True)

    def expire(self) -> None:
        """Removes the files whose time is up."""
        for stored in [*self._all()]:
            if _has_expired(stored):
                logger.info("File %s has expired", stored.file.id)
                self.delete(stored.file.id)

    def _described(self, file_id: str) -> Path:
        return self.folder.files / f"{file_id}.json"

    def _all(self) -> Iterator[StoredFile]:
        for path in self.folder.files.glob("file-*.json"):
            if (stored := self._load(path.stem)) is not None:
                yield stored

    def _load(self, file_id: str) -> StoredFile | None:
        try:
            return StoredFile.model_validate_json(self._described(file_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            logger.exception("%s cannot be read", self._described(file_id))
            return None


def _has_expired(stored: StoredFile) -> bool:
    return stored.file.expires_at is not None and stored.file.expires_at <= time.time()


def _no_room(what: str, flag: str) -> InvalidRequest:
    return InvalidRequest(
        f"The server already keeps {what} for batches: delete files that you no longer need "
        f"(DELETE /v1/files/{{id}}), or start the server with a larger {flag}.",
        code="storage_full",
    )
