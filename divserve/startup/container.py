"""What the container of this process lets it use: limits of control groups, version 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["core_limit", "memory_limit"]

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """The tightest limit of memory in bytes; None where there is none."""
    return min((int(text) for text in _settings("memory.max") if text != "max"), default=None)


def core_limit() -> int | None:
    """How many cores may be busy all the time, at least one; None where there is no limit."""
    cores = []
    for text in _settings("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            cores.append(max(1, int(quota) // int(period)))
    return min(cores, default=None)


def _settings(name: str) -> Iterator[str]:
    """What a file says in the group of this process and in those around it."""
    for folder in _groups():
        try:
            yield (folder / name).read_text().strip()
        except OSError:
            # The outermost group has no limits, and a container sees none but its own.
            continue


def _groups() -> list[Path]:
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        if line.startswith("0::"):
            own = ROOT / line.removeprefix("0::").lstrip("/")
            return [own, *(folder for folder in own.parents if folder.is_relative_to(ROOT))]
    return []
