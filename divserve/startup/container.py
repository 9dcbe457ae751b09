"""The limits of this process's container, from control groups, version 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["core_limit", "memory_limit"]

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """The tightest memory limit in bytes; None if there is none."""
    return min((int(text) for text in _settings("memory.max") if text != "max"), default=None)


def core_limit() -> int | None:
    """How many cores may be fully busy, at least one; None if there is no limit."""
    cores = []
    for text in _settings("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            cores.append(max(1, int(quota) // int(period)))
    return min(cores, default=None)


def _settings(name: str) -> Iterator[str]:
    """Contents of a settings file in the process's control group and in all enclosing ones."""
    for folder in _groups():
        try:
            yield (folder / name).read_text().strip()
        except OSError:
            # The outermost group has no limits, and a container sees only its own groups.
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
