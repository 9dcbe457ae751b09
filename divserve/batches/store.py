"""Batches on the disk, as every process reads them. All functions block.

batch.json      the batch; written by its creator, then only by the process that runs batches
counts.json     how many lines have been answered, about once a second
cancel          present once a client has asked to cancel it
input.jsonl     a link to the input file, which may be deleted meanwhile
output.jsonl, errors.jsonl   the answers (`divserve.batches.journal`)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from openai.types import Batch
from openai.types.batch_request_counts import BatchRequestCounts
from pydantic import BaseModel, ValidationError

from divserve.batches.files import DAY_S, FileStore, is_seen
from divserve.batches.flags import BatchSettings
from divserve.batches.folder import BATCH_ID, Folder, new_id, remove, storing, write_whole
from divserve.batches.shapes import CreateBatch, window_s
from divserve.errors import InvalidRequest, NotFound

__all__ = ["ENDED", "BatchStore", "StoredBatch"]

logger = logging.getLogger("vllm.divserve.batches")

Outcome = Literal["completed", "cancelled", "expired"]
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
CANCELLABLE = frozenset({"validating", "in_progress", "cancelling", "cancelled"})


class StoredBatch(BaseModel):
    """A batch, whose it is, and what clients do not see of it."""

    owner: str | None
    batch: Batch
    keep_s: int | None
    """Seconds for which its results are kept, if the client has said."""
    output_id: str
    error_id: str
    """The ids that its results will have, so that they can be published twice."""
    outcome: Outcome = "completed"
    """What it becomes when it is finalized."""


class BatchStore:
    """The batches.

    Args:
        folder: where they are.
        settings: the limits.
        files: the input files.
    """

    def __init__(self, folder: Folder, settings: BatchSettings, files: FileStore) -> None:
        self.folder = folder
        self.settings = settings
        self.files = files

    def create(self, asked: CreateBatch, owner: str | None) -> Batch:
        """Makes a batch of an uploaded file.

        Raises:
            InvalidRequest: there are too many batches, or the window makes no sense.
            NotFound: there is no such file.
            StorageFull: the disk is full.
        """
        seconds = window_s(asked.completion_window)
        source = self.files.get(asked.input_file_id, owner, "input_file_id")
        if source.purpose != "batch":
            raise InvalidRequest(
                f"The file {source.id} has the purpose {source.purpose!r}: upload one with the "
                "purpose 'batch'.",
                param="input_file_id",
            )
        if len(self.ids()) >= (most := self.settings.batch_max_batches):
            raise InvalidRequest(
                f"The server already keeps {most} batches: wait until old ones expire, or start "
                "the server with a larger --batch-max-batches.",
                code="storage_full",
            )
        now = int(time.time())
        batch = Batch(
            id=new_id("batch_"),
            completion_window=asked.completion_window,
            created_at=now,
            endpoint=asked.endpoint,
            expires_at=now + seconds,
            input_file_id=source.id,
            metadata=asked.metadata,
            object="batch",
            request_counts=BatchRequestCounts(completed=0, failed=0, total=0),
            status="validating",
        )
        keep_s = asked.output_expires_after.seconds if asked.output_expires_after else None
        stored = StoredBatch(
            owner=owner,
            batch=batch,
            keep_s=keep_s,
            output_id=new_id("file-"),
            error_id=new_id("file-"),
        )
        self._place(stored, self.files.path(source.id))
        return batch

    def _place(self, stored: StoredBatch, source: Path) -> None:
        made = self.folder.incoming / stored.batch.id
        with storing():
            made.mkdir()
            try:
                (made / "input.jsonl").hardlink_to(source)
                write_whole(made / "batch.json", stored.model_dump_json().encode())
                made.rename(self.path(stored.batch.id))
            except BaseException:
                remove(made)
                raise

    def path(self, batch_id: str) -> Path:
        """The folder of a batch."""
        return self.folder.batches / batch_id

    def get(self, batch_id: str, client: str | None) -> Batch:
        """What a client sees of a batch now.

        Raises:
            NotFound: there is none of this id, or it is another client's.
        """
        stored = self.load(batch_id) if BATCH_ID.fullmatch(batch_id) else None
        if stored is None or not is_seen(stored.owner, client):
            raise NotFound(
                f"There is no batch {batch_id[:64]!r}; /v1/batches lists all.", code="not_found"
            )
        return self._seen(stored)

    def of_client(self, client: str | None) -> list[Batch]:
        """The batches that a client sees."""
        return [self._seen(stored) for stored in self.all() if is_seen(stored.owner, client)]

    def cancel(self, batch_id: str, client: str | None) -> Batch:
        """Asks for the end of a batch, which comes soon; to ask again changes nothing.

        Raises:
            InvalidRequest: it has ended otherwise.
            NotFound: as `get`.
        """
        batch = self.get(batch_id, client)
        if batch.status not in CANCELLABLE:
            raise InvalidRequest(
                f"The batch {batch.id} is {batch.status}: it cannot be cancelled any more."
            )
        if batch.status != "cancelled":
            with suppress(FileExistsError, FileNotFoundError), storing():
                (self.path(batch_id) / "cancel").touch(exist_ok=False)
        return self.get(batch_id, client)

    def is_cancelled(self, batch_id: str) -> bool:
        """Whether a client has asked for its end."""
        return (self.path(batch_id) / "cancel").exists()

    def save(self, stored: StoredBatch) -> None:
        """Writes what has changed; only the process that runs batches does."""
        write_whole(self.path(stored.batch.id) / "batch.json", stored.model_dump_json().encode())

    def count(self, batch_id: str, counts: BatchRequestCounts) -> None:
        """Writes the progress of a batch that runs."""
        data = counts.model_dump_json().encode()
        write_whole(self.path(batch_id) / "counts.json", data, durable=False)

    def clear(self, batch_id: str) -> None:
        """Removes what only a batch that runs needs."""
        for path in self.path(batch_id).iterdir():
            if path.name != "batch.json":
                path.unlink(missing_ok=True)

    def expire(self) -> None:
        """Removes batches that ended so long ago that their results are gone."""
        oldest = time.time() - self.settings.batch_retention_days * DAY_S
        for stored in [*self.all()]:
            batch = stored.batch
            if batch.status in ENDED and (batch.expires_at or 0) < oldest:
                logger.info("Batch %s is deleted: its time is up", batch.id)
                remove(self.path(batch.id))

    def all(self) -> Iterator[StoredBatch]:
        """All batches, the oldest first."""
        for batch_id in self.ids():
            if (stored := self.load(batch_id)) is not None:
                yield stored

    def load(self, batch_id: str) -> StoredBatch | None:
        """A batch as it was last saved; None if there is none that can be read."""
        try:
            data = (self.path(batch_id) / "batch.json").read_bytes()
            return StoredBatch.model_validate_json(data)
        except FileNotFoundError:
            return None
        except ValidationError:
            logger.exception("%s cannot be read", self.path(batch_id))
            return None

    def ids(self) -> list[str]:
        """The ids of all batches, the oldest first."""
        names = (path.name for path in self.folder.batches.iterdir())
        return sorted(name for name in names if BATCH_ID.fullmatch(name))

    def _seen(self, stored: StoredBatch) -> Batch:
        batch, path = stored.batch, self.path(stored.batch.id)
        if batch.status in ENDED:
            return batch
        if batch.status == "in_progress":
            with suppress(FileNotFoundError, ValidationError):
                counted = (path / "counts.json").read_bytes()
                batch.request_counts = BatchRequestCounts.model_validate_json(counted)
        with suppress(FileNotFoundError):
            asked = int((path / "cancel").stat().st_mtime)
            if batch.status in ("validating", "in_progress"):
                batch.status, batch.cancelling_at = "cancelling", asked
        return batch
