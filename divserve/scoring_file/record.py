"""The records of a run: one JSON line for each line of the input, in its order.

They are written to ``OUT.partial``, which is also the journal: its last whole line tells where the
same command goes on. ``OUT.run.json`` has the settings, and the summary once the run is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from filelock import FileLock, Timeout

from divserve.errors import StartupError
from divserve.scoring_file import parquet
from divserve.scoring_file.tally import Tally

__all__ = ["Record"]


class Record:
    """A run on disk; a context manager that keeps other processes away.

    Args:
        out: the file to write.
        settings: what must be the same when the run goes on.
        resume: False: begin anew.

    Raises:
        StartupError: `out` is of another run, of none, or in use.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], resume: bool = True) -> None:
        self.out, self._settings = out, dict(settings)
        self.partial, self._run = Path(f"{out}.partial"), Path(f"{out}.run.json")
        self._resume = resume
        self._held = ExitStack()
        self._file: BinaryIO
        self.tally = Tally()
        self.last = 0
        """Number of the last line of the input that has a record."""
        self.summary: dict[str, Any] | None = None
        """Of a run that is complete."""

    def __enter__(self) -> Self:
        with ExitStack() as held:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(f"{self.out}.lock", timeout=0))
                self._open(held)
            except Timeout:
                raise StartupError(f"another process writes {self.out}: wait for it") from None
            except OSError as error:
                raise self._unwritable(error) from None
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            # A full disk has been told of where it was met.
            self._held.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends the record of the next line.

        Raises:
            StartupError: it cannot be written.
        """
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from None
        self._count(record)

    def finish(self, listed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Writes `out` and returns the summary.

        Args:
            listed: what the server tells of each score.

        Raises:
            StartupError: it cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
            made = self.partial
            if self.out.suffix == ".parquet":
                made = Path(f"{self.out}.making")
                parquet.convert(self.partial, made, list(self.tally.values))
            self.summary = self.tally.summary(listed)
            # Before `out` is there: without it, the run goes on from the journal.
            self._write_run()
            made.replace(self.out)
            self.partial.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return self.summary

    def _open(self, held: ExitStack) -> None:
        if self._resume and self._run.exists():
            self._go_on()
        elif self._resume and self.out.exists():
            raise StartupError(
                f"{self.out} exists and is not of this command: give another --out, or "
                "--no-resume to replace it"
            )
        else:
            for file in (self.partial, self.out):
                file.unlink(missing_ok=True)
            self._write_run()
        if self.summary is None:
            self._file = held.enter_context(self.partial.open("ab+"))
            self._recover()

    def _go_on(self) -> None:
        try:
            found = json.loads(self._run.read_text(encoding="utf-8"))
            earlier, self.summary = found["settings"], found["summary"]
        except (ValueError, KeyError, TypeError):
            raise StartupError(f"{self._run} cannot be read: start anew with --no-resume") from None
        for name in sorted({*earlier, *self._settings}):
            if (old := earlier.get(name)) != (new := self._settings.get(name)):
                raise StartupError(
                    f"{self.out} was begun with {_said(name, old)}, not {_said(name, new)}: give "
                    "the same file and options, another --out, or --no-resume to start anew"
                )
        if self.summary is not None and not self.out.exists():
            self.summary = None

    def _recover(self) -> None:
        """Counts the whole lines of the journal and cuts off a torn one."""
        whole = 0
        self._file.seek(0)
        for line in self._file:
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if record is None:
                break
            self._count(record)
            whole += len(line)
        self._file.truncate(whole)

    def _count(self, record: Mapping[str, Any]) -> None:
        self.tally.add(record)
        self.last = record["line"]

    def _write_run(self) -> None:
        made = Path(f"{self._run}.making")
        whole = {"settings": self._settings, "summary": self.summary}
        made.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        made.replace(self._run)

    def _unwritable(self, error: OSError) -> StartupError:
        return StartupError(f"cannot write {self.out}: {error.strerror or error}")


def _said(name: str, value: Any) -> str:
    shown = json.dumps(value)
    return f"{name} = {shown if len(shown) <= 60 else shown[:57] + '…'}"
