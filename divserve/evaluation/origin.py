"""Where figures come from: machine, commit, day."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["Origin"]

SOURCE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a reader needs to judge a figure or to make it again."""

    date: str
    """Day, UTC."""
    commit: str | None
    """Of the source tree, with ``+`` if the tree differs from it; None: an installed package."""
    hardware: str
    note: str = ""
    """What else the user says, as the server's flags."""

    @classmethod
    def here(cls, hardware: str | None = None, note: str = "") -> Origin:
        """Today's, on this machine unless `hardware` names another."""
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        return cls(day, _commit(), hardware or _hardware(), note)

    def __str__(self) -> str:
        at = f", commit {self.commit}" if self.commit else ""
        told = f" {self.note}" if self.note else ""
        return f"{self.date}{at}, on {self.hardware}.{told}"


def _hardware() -> str:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((li.split(":", 1)[1].strip() for li in lines if "model name" in li), name)
    return f"{os.cpu_count()} cores {name}"


def _commit() -> str | None:
    def git(*args: str) -> str:
        command = ["git", "-C", str(SOURCE), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        head = git("rev-parse", "--short", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    return None
