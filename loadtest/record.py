"""Records the figures of load tests and benchmarks: one CSV, with hardware, date and commit."""

from __future__ import annotations

import csv
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["RESULTS", "append", "asked"]

RESULTS = Path(__file__).parents[1] / "bench" / "results.csv"
COMMIT = "DIVSERVE_COMMIT"
COLUMNS = ("date", "commit", "hardware", "bench", "case", "metric", "value", "spread", "command")


def append(bench: str, command: str, figures: Iterable[Mapping[str, str]]) -> None:
    """Appends figures (``case``, ``metric``, ``value``, ``spread``) to `RESULTS`."""
    shared = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "hardware": _hardware(),
        "bench": bench,
        "command": command,
    }
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for figure in figures:
            writer.writerow({**shared, **figure})


def asked(module: str) -> str:
    """The command that runs this program, as its user typed it."""
    return " ".join([f"python -m {module}", *sys.argv[1:]])


def _commit() -> str:
    """Short hash of HEAD, with ``+`` when the tree differs from it.

    The variable `COMMIT` says it where only the files are, without git's folder.
    """
    if told := os.environ.get(COMMIT):
        return told

    def git(*args: str) -> str:
        return subprocess.run(
            ("git", *args), check=False, capture_output=True, text=True, cwd=RESULTS.parent
        ).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", "../divserve", "../kernels"
    )
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _hardware() -> str:
    """GPU name, or CPU model and number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} cores {models[0] if models else platform.processor()}"
