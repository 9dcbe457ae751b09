"""The lines of one batch under way: each is asked until its answer is in the journal."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from openai.types.batch_request_counts import BatchRequestCounts

from divserve import metrics
from divserve.batches.call import Answer
from divserve.batches.journal import Journal
from divserve.batches.lines import chunks, parse
from divserve.batches.parts import Parts
from divserve.batches.room import Share
from divserve.batches.store import StoredBatch
from divserve.errors import InvalidRequest
from divserve.http.errors import error_body

__all__ = ["Answering"]

COUNT_S = 1.0
"""How often progress is written for the other processes."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""How long a line waits before it is sent again to a server that is busy."""
TRIES = 6
"""How often a line is sent that gets a 503: longer than a server takes to end whose engine died."""
BUSY, UNAVAILABLE = 429, 503
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


@dataclass(frozen=True)
class _Ready:
    """A line that can be sent."""

    custom_id: str
    body: bytes
    streams: bool


class Answering:
    """Answers the lines that have no answer yet.

    Args:
        stored: the batch.
        parts: what all batches use.
        journal: of the batch.
        keep: calls a function that writes, in a thread.
    """

    def __init__(
        self,
        stored: StoredBatch,
        parts: Parts,
        journal: Journal,
        keep: Callable[..., Awaitable[Any]],
    ) -> None:
        self._owner, self._batch = stored.owner, stored.batch
        self._parts, self._journal, self._keep = parts, journal, keep
        self._left = asyncio.Event()
        """Ends the lines under way."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None
        self._slots = asyncio.Semaphore(parts.room.limit)
        self._rows = 1
        """What the last line needed: the next one is probably alike."""
        self._counted = 0.0

    @property
    def counts(self) -> BatchRequestCounts:
        """How many lines there are, and how they were answered."""
        known = self._batch.request_counts
        return BatchRequestCounts(
            total=known.total if known else 0,
            completed=self._journal.completed,
            failed=self._journal.failed,
        )

    async def feed(self) -> None:
        """Begins line after line as there is room, and waits for all of them.

        Raises:
            Exception: a line was not answered; it may be begun again.
        """
        reader = self._unanswered()
        while (lines := await to_thread.run_sync(next, reader, None)) is not None:
            for line in lines:
                await self._slots.acquire()
                share = await self._parts.room.take(self._rows)
                task = asyncio.create_task(self._line(line, share))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
                if self._fault is not None:
                    raise self._fault
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._fault is not None:
            raise self._fault

    async def leave(self) -> None:
        """Ends the lines under way; those whose answer has come are recorded."""
        self._left.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def write_off(self) -> int:
        """Gives all lines that have no answer the error of an expired batch; how many they are."""

        def write(lines: list[_Ready]) -> None:
            for line in lines:
                record = _record(line.custom_id, None, EXPIRED)
                self._journal.append(record, failed=True)

        reader, written = self._unanswered(), 0
        while (lines := await to_thread.run_sync(next, reader, None)) is not None:
            await self._keep(write, lines)
            written += len(lines)
        return written

    def _unanswered(self) -> Iterator[list[_Ready]]:
        """Blocks; some lines at a time."""
        endpoint = self._batch.endpoint
        path = self._parts.store.path(self._batch.id) / "input.jsonl"
        # All lines have passed the check; the limit may have changed since.
        longest = path.stat().st_size
        for chunk in chunks(path, longest):
            lines = [parse(number, text, endpoint, longest) for number, text in chunk]
            yield [
                _Ready(
                    line.custom_id,
                    self._parts.caller.encoded(endpoint, line.body),
                    bool(line.body.get("stream")),
                )
                for line in lines
                if line.key not in self._journal.done
            ]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fault = error

    async def _line(self, line: _Ready, share: Share) -> None:
        tries, wait_s = 0, FIRST_WAIT_S
        while True:
            try:
                answer = await self._ask(line, share)
            finally:
                had = share.release()
            if answer is None:
                return
            tries += answer.status == UNAVAILABLE
            if answer.status not in (BUSY, UNAVAILABLE) or tries >= TRIES:
                break
            if share.asked <= had:
                # It was not for want of room here.
                if await self._halts(min(max(wait_s, answer.retry_after_s), LONGEST_WAIT_S)):
                    return
                wait_s *= 2
            taken = await self._take(share.asked)
            if taken is None:
                return
            share = taken
        self._rows = share.asked
        await self._keep(self._write, line, answer)
        metrics.BATCH_LINES.labels("ok" if answer.status == 200 else "failed").inc()

    async def _ask(self, line: _Ready, share: Share) -> Answer | None:
        if line.streams:
            refused = error_body(
                InvalidRequest("A line of a batch has no stream: leave it out.", param="stream")
            )
            return Answer(400, uuid.uuid4().hex, json.dumps(refused).encode())
        return await self._parts.caller.call(
            self._batch.endpoint, line.body, self._owner, share.weigh, self._left
        )

    async def _halts(self, seconds: float) -> bool:
        """Waits; True at once if lines are to end."""
        leaving = asyncio.create_task(self._left.wait())
        try:
            await asyncio.wait({leaving}, timeout=seconds)
        finally:
            leaving.cancel()
        return self._left.is_set()

    async def _take(self, rows: int) -> Share | None:
        """Waits for room; None if lines are to end."""
        taking = asyncio.create_task(self._parts.room.take(rows))
        leaving = asyncio.create_task(self._left.wait())
        try:
            await asyncio.wait({taking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taking.cancel()
            leaving.cancel()
            await asyncio.wait({taking, leaving})
        return None if taking.cancelled() else taking.result()

    def _write(self, line: _Ready, answer: Answer) -> None:
        try:
            body = json.loads(answer.body)
        except ValueError:
            body = answer.body.decode(errors="replace")
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
        record = _record(line.custom_id, response, None)
        self._journal.append(record, failed=answer.status != 200)
        if time.monotonic() - self._counted >= COUNT_S:
            self._counted = time.monotonic()
            # The answer is safe; its count can wait.
            with suppress(OSError):
                self._parts.store.count(self._batch.id, self.counts)


def _record(
    custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None
) -> dict[str, Any]:
    """A line of the results."""
    return {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
