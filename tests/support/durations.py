"""Where the time of a run goes: seconds per file and of the longest tests, fixtures included."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST = 50

_spent = 0.0


def spent() -> float:
    """CPU seconds since the last call: of this process and of the children that it waited for."""
    global _spent
    before, now = _spent, os.times()
    _spent = now.user + now.system + now.children_user + now.children_system
    return _spent - before


def write(path: Path, stats: Mapping[str, Sequence[Any]]) -> None:
    """Writes the totals of a terminal reporter's reports.

    Args:
        path: file to write; folders are made.
        stats: reports by category, with their CPU seconds; anything else is left out.
    """
    files: dict[str, Counter[str]] = {"seconds": Counter(), "cpu": Counter()}
    tests: dict[str, Counter[str]] = {"seconds": Counter(), "cpu": Counter()}
    for report in (one for reports in stats.values() for one in reports):
        if hasattr(report, "cpu"):
            for found, name in ((files, report.nodeid.split("::", 1)[0]), (tests, report.nodeid)):
                found["seconds"][name] += report.duration
                found["cpu"][name] += report.cpu
    lines = ["seconds     CPU  file", *_lines(files, None)]
    lines += ["", f"seconds     CPU  test ({LONGEST} longest)", *_lines(tests, LONGEST)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _lines(found: Mapping[str, Counter[str]], most: int | None) -> list[str]:
    longest = found["seconds"].most_common(most)
    return [f"{seconds:7.1f} {found['cpu'][name]:7.1f}  {name}" for name, seconds in longest]
