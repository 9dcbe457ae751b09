"""One batch, from its validation to its results.

It can end at any time, by a stop or a kill, and goes on from what is on the disk: a line is
answered if its answer is in the journal.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from anyio import to_thread
from openai.types.batch import Errors
from openai.types.batch_request_counts import BatchRequestCounts

from divserve.batches.answering import Answering
from divserve.batches.journal import ERRORS, OUTPUT, Journal
from divserve.batches.lines import Check, chunks
from divserve.batches.parts import Parts
from divserve.batches.store import StoredBatch
from divserve.batches.tokens import usage_of

__all__ = ["Run"]

logger = logging.getLogger("vllm.divserve.batches")

RETRY_S = 5.0
"""Seconds after which a write is tried again that has failed, as on a full disk."""
Reason = Literal["stop", "cancelled", "expired"]


class Run:
    """A batch that runs.

    Args:
        stored: as it was last saved.
        parts: what all batches use.
    """

    def __init__(self, stored: StoredBatch, parts: Parts) -> None:
        self.stored = stored
        self._parts = parts
        self._path = parts.store.path(stored.batch.id)
        self._halted = asyncio.Event()
        self._reason: Reason | None = None

    def stop(self) -> None:
        """Ends it soon; it stays as it is on the disk, and goes on when it is run again."""
        self._halt("stop")

    def cancel(self) -> None:
        """Ends it soon, with the answers that it has."""
        if self._reason is None:
            self._halt("cancelled")

    def _halt(self, reason: Reason) -> None:
        self._reason = reason
        self._halted.set()

    async def run(self) -> None:
        """Runs until it has ended, or has been stopped.

        Raises:
            OSError: the disk fails; it may be run again.
        """
        batch = self.stored.batch
        if batch.status == "validating":
            await self._validate()
        if batch.status == "in_progress":
            await self._work()
        if batch.status == "finalizing":
            await self._publish()

    async def _validate(self) -> None:
        settings, batch = self._parts.store.settings, self.stored.batch
        check = Check(batch.endpoint, self._parts.longest, settings.batch_max_lines)
        reader = chunks(self._path / "input.jsonl", self._parts.longest)

        def read() -> bool:
            lines = next(reader, None)
            return lines is not None and check.add(lines)

        while await to_thread.run_sync(read):
            if self._reason == "stop":
                return
            if self._reason == "cancelled":
                self.stored.outcome = "cancelled"
                await self._becomes("finalizing")
                return
        check.end()
        if check.errors:
            batch.errors = Errors(data=check.errors, object="list")
            await self._becomes("failed")
            return
        batch.model = next(iter(check.models)) or None if len(check.models) == 1 else None
        batch.request_counts = BatchRequestCounts(total=check.total, completed=0, failed=0)
        await self._becomes("in_progress")

    async def _work(self) -> None:
        journal = await to_thread.run_sync(Journal, self._path)
        answering = Answering(self.stored, self._parts, journal, self._keep)
        try:
            await self._answer(answering)
            if self._reason == "expired" and await answering.write_off():
                self.stored.outcome = "expired"
            counts = self.stored.batch.request_counts = answering.counts
            self.stored.batch.usage = usage_of(journal.tokens)
            if self._reason == "cancelled" and counts.total > counts.completed + counts.failed:
                self.stored.outcome = "cancelled"
        finally:
            await to_thread.run_sync(journal.close)
        if self._reason != "stop":
            await self._becomes("finalizing")

    async def _answer(self, answering: Answering) -> None:
        """Answers lines until all are answered or the batch is halted."""
        feeding = asyncio.create_task(answering.feed())
        halted = asyncio.create_task(self._halted.wait())
        left_s = max(0.0, (self.stored.batch.expires_at or 0) - time.time())
        try:
            await asyncio.wait(
                {feeding, halted}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not feeding.done() and not halted.done():
                self._halt("expired")
        finally:
            for task in (feeding, halted):
                task.cancel()
            await asyncio.wait({feeding, halted})
            await answering.leave()
        if not feeding.cancelled():
            feeding.result()

    async def _publish(self) -> None:
        """Makes files of the answers."""
        stored, batch = self.stored, self.stored.batch
        batch.output_file_id = await self._keep(self._add, OUTPUT, stored.output_id, "output")
        batch.error_file_id = await self._keep(self._add, ERRORS, stored.error_id, "error")
        if stored.outcome == "cancelled":
            batch.cancelling_at = batch.finalizing_at
            batch.finalizing_at = None
        await self._becomes(stored.outcome)

    def _add(self, name: str, file_id: str, kind: str) -> str | None:
        source, target = self._path / name, self._parts.files.path(file_id)
        if not target.exists() and not (source.exists() and source.stat().st_size):
            return None
        filename = f"{self.stored.batch.id}_{kind}.jsonl"
        self._parts.files.add(
            source, file_id, self.stored.owner, "batch_output", filename, self.stored.keep_s
        )
        return file_id

    async def _becomes(self, status: Any) -> None:
        batch = self.stored.batch
        batch.status = status
        setattr(batch, f"{status}_at", int(time.time()))
        await self._keep(self._parts.store.save, self.stored)
        counts = batch.request_counts or BatchRequestCounts(completed=0, failed=0, total=0)
        logger.info(
            "Batch %s is %s: %d lines, %d answered, %d failed",
            batch.id, status, counts.total, counts.completed, counts.failed,
        )  # fmt: skip

    async def _keep(self, write: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that writes in a thread, again and again while the disk is full.

        Raises:
            OSError: it failed, and the server stops.
        """
        while True:
            try:
                return await to_thread.run_sync(partial(write, *args))
            except OSError as error:
                if self._reason == "stop":
                    raise
                logger.error("Batch %s waits: %s", self.stored.batch.id, error)
            await self._pause()

    async def _pause(self) -> None:
        deadline = time.monotonic() + RETRY_S
        while self._reason != "stop" and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
