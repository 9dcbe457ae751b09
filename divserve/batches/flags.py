"""The flags of the batches."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from divserve.batches import folder
from divserve.errors import StartupError

__all__ = ["BatchSettings", "add_flags"]


@dataclass(frozen=True)
class BatchSettings:
    """The values of the flags, or their defaults."""

    batch_dir: Path | None = None
    batch_max_rows: int | None = None
    batch_max_lines: int = 50_000
    batch_max_file_bytes: int = 200 * 1024 * 1024
    batch_max_total_bytes: int = 10 * 1024**3
    batch_max_files: int = 1000
    batch_max_batches: int = 1000
    batch_retention_days: int = 30

    @classmethod
    def of(cls, args: Namespace) -> BatchSettings:
        """Reads the flags, and makes the folder.

        Raises:
            StartupError: a value makes no sense, or the folder cannot be used.
        """
        settings = cls(**{field.name: getattr(args, field.name) for field in fields(cls)})
        for field in fields(cls):
            value = getattr(settings, field.name)
            if isinstance(value, int) and value < 1:
                raise StartupError(f"--{field.name.replace('_', '-')} is at least 1, not {value}")
        if settings.batch_dir is not None:
            folder.prepare(settings.batch_dir)
        return settings


def add_flags(parser: ArgumentParser) -> None:
    """Adds the flags of `BatchSettings` to the parser of ``divserve serve``."""
    default = BatchSettings()
    group: Any = parser.add_argument_group("divserve: batches")
    group.add_argument(
        "--batch-dir",
        type=Path,
        metavar="DIR",
        help="Turns on /v1/files and /v1/batches, and keeps files, batches and results in this "
        "folder on a local disk (default: off).",
    )
    group.add_argument(
        "--batch-max-rows",
        type=int,
        metavar="N",
        help="Most rows of the engine's batch that lines of batches take at the same time "
        "(default: half of them).",
    )
    for flag, what in {
        "--batch-max-lines": "Most lines of a batch",
        "--batch-max-file-bytes": "Largest uploaded file, in bytes",
        "--batch-max-total-bytes": "Most bytes of all files and results; beyond that, uploads are "
        "rejected and batches wait",
        "--batch-max-files": "Most files; beyond that, uploads are rejected",
        "--batch-max-batches": "Most batches; beyond that, new ones are rejected",
        "--batch-retention-days": "Days after which files, and batches that have ended, are "
        "deleted",
    }.items():
        value = getattr(default, flag[2:].replace("-", "_"))
        group.add_argument(
            flag, type=int, default=value, metavar="N", help=f"{what} (default: {value})."
        )
