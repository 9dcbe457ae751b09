"""A run: the lines of a file, several at once, whose records are written in the file's order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from divserve.errors import StartupError
from divserve.scoring_file import parquet
from divserve.scoring_file.client import Refused, Server
from divserve.scoring_file.lines import Line, Source
from divserve.scoring_file.record import Record
from divserve.scoring_file.settings import Settings

__all__ = ["score_file"]

Progress = Callable[[int, int, int], None]
"""Told of the line that was written last, of how many there are, and how many have failed."""

AHEAD = 4
"""Lines in memory, as a multiple of the requests at once: so far others go on behind a slow one."""
SHOWN = ("index", "tokens", "scores", "excluded", "trace")
"""What a record keeps of each text."""


async def score_file(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Scores all lines that have no record yet, and returns the summary of all.

    Raises:
        StartupError: the input cannot be read, the server is not there or refuses what all lines
            ask for, or the output is of another run.
    """
    parquet.check(settings.out)
    source = Source.of(settings.file)
    server = Server(settings.url, settings.key)
    try:
        listed = await server.scores()
        _check_names(settings.fields.get("scores", ()), listed)
        model = settings.model or await server.model()
        fingerprint = settings.fingerprint(source.digest, model)
        with Record(settings.out, fingerprint, settings.resume) as record:
            if record.summary is not None:
                return record.summary
            fields = {"model": model, **settings.fields}
            await _Run(source, server, record, settings.parallel, progress).all(fields)
            return record.finish(listed)
    finally:
        await server.close()


@dataclass(slots=True)
class _Run:
    source: Source
    server: Server
    record: Record
    parallel: int
    progress: Progress
    window: deque[asyncio.Task[dict[str, Any]]] = field(default_factory=deque)
    """Requests under way, and answers that wait for those of earlier lines."""

    async def all(self, fields: Mapping[str, Any]) -> None:
        """Scores the lines behind those that have a record."""
        room = asyncio.Semaphore(self.parallel)
        self._tell()
        try:
            async with asyncio.TaskGroup() as group:
                for line in self.source.lines(fields, self.record.last):
                    if len(self.window) >= AHEAD * self.parallel:
                        await self.window[0]
                    self._write()
                    self.window.append(group.create_task(self._one(line, room)))
                while self.window:
                    await self.window[0]
                    self._write()
        except* StartupError as errors:
            # The first that the server refused for all has ended the others.
            raise _first(errors) from None
        finally:
            self._write()

    async def _one(self, line: Line, room: asyncio.Semaphore) -> dict[str, Any]:
        known = {"line": line.number, "id": line.id}
        if line.error is not None:
            return {**known, "error": {"message": line.error}}
        try:
            async with room:
                answer = await self.server.score(line.body)
        except Refused as refused:
            return {**known, "error": refused.error}
        data = [{name: text[name] for name in SHOWN if name in text} for text in answer["data"]]
        return {**known, "data": data, "usage": answer["usage"]}

    def _write(self) -> None:
        """Writes the answers that wait for no earlier one."""
        while self.window and self.window[0].done():
            task = self.window[0]
            if task.cancelled() or task.exception() is not None:
                return
            self.record.add(self.window.popleft().result())
            self._tell()

    def _tell(self) -> None:
        self.progress(self.record.last, self.source.count, self.record.tally.failed)


def _check_names(names: list[str], listed: Mapping[str, Mapping[str, Any]]) -> None:
    for name in names:
        if name not in listed:
            raise StartupError(f"there is no score '{name}': the scores are {', '.join(listed)}")
        entry = listed[name]
        if not entry.get("available", True):
            more = ["--scores membership"] if entry.get("membership") else []
            needs = ", ".join([*entry["needs"], *more])
            raise StartupError(f"{name} is not offered by this server: it needs {needs}")


def _first(errors: BaseExceptionGroup[StartupError]) -> StartupError:
    """The first error of a group."""
    (error, *_) = errors.exceptions
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
