"""Where the time of a run goes: seconds of files and of the longest tests, fixtures included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST = 50


def write(path: Path, stats: Mapping[str, Sequence[Any]]) -> None:
    """Writes what the reports of a terminal reporter add up to.

    Args:
        path: file to write; folders are made.
        stats: reports by their category; other things are left out.
    """
    files: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for report in (one for reports in stats.values() for one in reports):
        if hasattr(report, "duration") and hasattr(report, "when"):
            files[report.nodeid.split("::", 1)[0]] += report.duration
            tests[report.nodeid] += report.duration
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["seconds  file", *_lines(files, None), "", f"seconds  test ({LONGEST} longest)"]
    path.write_text("\n".join([*lines, *_lines(tests, LONGEST)]) + "\n")


def _lines(seconds: Counter[str], most: int | None) -> list[str]:
    return [f"{value:7.1f}  {name}" for name, value in seconds.most_common(most)]
