"""What an idle server holds: rows, blocks, processes, files, tasks, memory."""

from __future__ import annotations

import time

import psutil

from tests.support.server import gauges, get

GRACE_S = 20
SETTLES_S = 1


def tree(server: psutil.Process) -> list[psutil.Process]:
    """A server's process and all below it."""
    return [server, *server.children(recursive=True)]


def held(url: str, server: psutil.Process) -> dict[str, float]:
    """What a server of `tests.support.watched_server` holds, once its gauges say it is idle."""
    deadline = time.monotonic() + GRACE_S
    while any(gauges(url).values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(SETTLES_S)
    return gauges(url) | {
        "processes": len(tree(server)),
        "files": sum(process.num_fds() for process in tree(server)),
        "tasks": float(get(url, "/tasks")),
        "memory": sum(process.memory_info().rss for process in tree(server)),
    }
