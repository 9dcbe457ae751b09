"""What the server holds under load: memory, open files and gauges, every few seconds.

Memory is the private memory of the process tree: resident memory without file pages and shared
pages, whose size depends on what else runs on the machine.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from loadtest.client import API_KEY

__all__ = ["EVERY_S", "Monitor", "Reading", "gauges", "read_readings"]

EVERY_S = 5.0
FILE = "server.jsonl"
GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv",
}
MB = 1e6


@dataclass(frozen=True)
class Reading:
    """The server at one moment; None for what could not be read."""

    at: float
    """By the wall clock."""
    memory: float | None = None
    """MB of the process tree; see above."""
    resident: float | None = None
    """MB including file and shared pages, which are counted once per process."""
    files: float | None = None
    processes: float | None = None
    running: float | None = None
    """Rows in the engine's batch."""
    waiting: float | None = None
    kv: float | None = None
    """Share of the KV cache in use."""


class Monitor:
    """Reads a server's state at intervals and records it.

    Args:
        url: the server's address, for ``/metrics``.
        pid: its process, if it runs on this machine.
        folder: where `FILE` goes.
        every_s: pause between two readings.
    """

    def __init__(self, url: str, pid: int | None, folder: Path, every_s: float = EVERY_S) -> None:
        self._url = f"{url.rstrip('/')}/metrics"
        self._pid = pid
        self._every_s = every_s
        self._next = 0.0
        self._file = folder / FILE
        self._file.write_text("")
        key = os.environ.get(API_KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = urllib3.PoolManager(timeout=5, retries=False, headers=headers)

    def look(self) -> None:
        """Adds a reading if it is time for one."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every_s
        reading = Reading(time.time(), **self._held(), **self._gauges())
        with self._file.open("a") as file:
            file.write(json.dumps(asdict(reading)) + "\n")

    def _gauges(self) -> dict[str, float]:
        try:
            answer = self._http.request("GET", self._url)
        except (urllib3.exceptions.HTTPError, OSError):
            return {}
        return gauges(answer.data.decode()) if answer.status == 200 else {}

    def _held(self) -> dict[str, float]:
        if self._pid is None:
            return {}
        try:
            server = psutil.Process(self._pid)
            tree = [server, *server.children(recursive=True)]
            sizes = [process.memory_info() for process in tree]
            return {
                "memory": sum(size.rss - size.shared for size in sizes) / MB,
                "resident": sum(size.rss for size in sizes) / MB,
                "files": sum(process.num_fds() for process in tree),
                "processes": len(tree),
            }
        except (psutil.Error, AttributeError):  # The process has ended, or this is not Linux.
            return {}


def gauges(text: str) -> dict[str, float]:
    """The gauges in the text of ``/metrics``, summed over engines (``kv``: the maximum)."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if name := GAUGES.get(sample.name):
                found.setdefault(name, []).append(sample.value)
    return {name: max(values) if name == "kv" else sum(values) for name, values in found.items()}


def read_readings(folder: Path) -> list[Reading]:
    """All readings of a test; empty if it left none."""
    if not (folder / FILE).exists():
        return []
    lines = (folder / FILE).read_text().splitlines()
    return [Reading(**json.loads(line)) for line in lines]
