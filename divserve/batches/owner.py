"""The one process that runs the batches of a folder.

Each API process tries to get the folder's lock and the first one runs the batches; when it ends,
however that happens, the kernel frees the lock and another goes on from what is on the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import get_args

from anyio import to_thread
from filelock import FileLock, Timeout
from openai.types import Batch

from divserve import metrics
from divserve.batches.parts import Parts
from divserve.batches.runner import Run
from divserve.batches.store import ENDED, StoredBatch

__all__ = ["Owner"]

logger = logging.getLogger("vllm.divserve.batches")

LOOK_S = 1.0
"""How often the folder is searched for new batches, and those that are to be cancelled."""
LOCK_S = 5.0
"""How often a process asks for the lock that another one has."""
TIDY_S = 60.0
MOST_ACTIVE = 8
"""Batches that run at the same time; their lines take turns."""
STOP_S = 15.0
"""Longest wait for lines that are told to end."""
STATUSES = get_args(Batch.model_fields["status"].annotation)


class Owner:
    """Runs batches while the application serves.

    Args:
        parts: what all batches use.
        drain: set when the server begins to stop.
    """

    def __init__(self, parts: Parts, drain: asyncio.Event) -> None:
        self._parts = parts
        self._drain = drain
        self._wake, self._closed = asyncio.Event(), asyncio.Event()
        self._lock = FileLock(parts.store.folder.lock, thread_local=False)
        self._active: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._owners: dict[str, str | None] = {}
        self._ended: dict[str, str] = {}
        """The final status of batches that need not be read again."""
        self._tidied = -TIDY_S

    def wake(self) -> None:
        """Tells it that there is something new in the folder; other processes cannot."""
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs batches within the context, until the server drains."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._closed.set()
            await asyncio.wait({task}, timeout=STOP_S + LOOK_S)
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        ends = (self._drain.wait(), self._closed.wait(), self._work())
        tasks = {asyncio.ensure_future(end) for end in ends}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._stop()
            await to_thread.run_sync(self._lock.release)

    async def _work(self) -> None:
        """Gets the lock, then runs what there is, for ever."""
        while not await to_thread.run_sync(self._locks):
            await asyncio.sleep(LOCK_S)
        logger.info("Running the batches of %s", self._parts.store.folder.root)
        while True:
            self._wake.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("The batches cannot be read; trying again")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    def _locks(self) -> bool:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError:
            logger.exception("The lock of the batches cannot be had; trying again")
            return False
        return True

    async def _look(self) -> None:
        """Begins batches, passes cancellations on, and removes what has expired."""
        now = asyncio.get_running_loop().time()
        if now - self._tidied >= TIDY_S:
            self._tidied = now
            await to_thread.run_sync(self._tidy)
        pending = await to_thread.run_sync(self._pending)
        for chosen in self._in_turn(pending):
            # It may have ended since it was read.
            stored = await to_thread.run_sync(self._parts.store.load, chosen.batch.id)
            if stored is not None and stored.batch.status not in ENDED:
                self._begin(stored)
        for batch_id, (run, _) in [*self._active.items()]:
            if await to_thread.run_sync(self._parts.store.is_cancelled, batch_id):
                run.cancel()

    def _tidy(self) -> None:
        parts = self._parts
        parts.files.expire()
        parts.store.expire()
        parts.store.folder.tidy()
        full = parts.store.folder.used() >= parts.store.settings.batch_max_total_bytes
        if full and not parts.room.paused:
            logger.warning("Batches wait: --batch-max-total-bytes is used up")
        parts.room.paused = full

    def _pending(self) -> list[StoredBatch]:
        """The batches that have not ended, the oldest first."""
        pending, statuses = [], Counter[str]()
        known, self._ended = self._ended, {}
        for batch_id in self._parts.store.ids():
            status = known.get(batch_id)
            if status is None and (stored := self._parts.store.load(batch_id)) is not None:
                status = stored.batch.status
                if status not in ENDED:
                    pending.append(stored)
            if status in ENDED:
                if batch_id not in known:
                    self._parts.store.clear(batch_id)
                self._ended[batch_id] = status
            if status is not None:
                statuses[status] += 1
        for status in STATUSES:
            metrics.BATCHES.labels(status).set(statuses[status])
        return pending

    def _in_turn(self, pending: list[StoredBatch]) -> list[StoredBatch]:
        """Those that begin now: clients with fewer running batches come first."""
        running = Counter(self._owners[batch_id] for batch_id in self._active)
        chosen: list[StoredBatch] = []
        waiting = [stored for stored in pending if stored.batch.id not in self._active]
        while waiting and len(self._active) + len(chosen) < MOST_ACTIVE:
            first = min(waiting, key=lambda stored: running[stored.owner])
            waiting.remove(first)
            running[first.owner] += 1
            chosen.append(first)
        return chosen

    def _begin(self, stored: StoredBatch) -> None:
        batch_id = stored.batch.id
        run = Run(stored, self._parts)
        task = asyncio.create_task(self._guarded(run))
        self._active[batch_id], self._owners[batch_id] = (run, task), stored.owner

    async def _guarded(self, run: Run) -> None:
        """Runs a batch; one that fails is tried again at the next look."""
        batch_id = run.stored.batch.id
        try:
            await run.run()
        except Exception:
            logger.exception("Batch %s was interrupted; it goes on later", batch_id)
            await asyncio.sleep(LOOK_S)
        finally:
            del self._active[batch_id], self._owners[batch_id]
            self._wake.set()

    async def _stop(self) -> None:
        runs = [*self._active.values()]
        for run, _ in runs:
            run.stop()
        tasks = {task for _, task in runs}
        if not tasks:
            return
        logger.info("Stopping %d batches; they go on after a restart", len(tasks))
        _, late = await asyncio.wait(tasks, timeout=STOP_S)
        for task in late:
            task.cancel()
        await asyncio.wait(tasks)
