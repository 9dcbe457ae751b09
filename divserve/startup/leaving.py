"""Leaves at once: ends this process and all below it, without a word to any of them.

Two cases need it. A signal during start-up has nothing to finish, and an exception may not get
through: vLLM swallows a KeyboardInterrupt while it waits for an engine, and an engine that is being
made only notes a SIGTERM. And a shut-down that is stuck has to end, whatever it is stuck in.

It imports neither vLLM nor anything else that takes time, because signals come at any time.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from os import _exit as exit_at_once
from pathlib import Path

__all__ = ["STUCK", "LastResort", "leave", "on_signals"]

PROC = Path("/proc")
TRACKER = b"multiprocessing.resource_tracker"
"""Left alone: it ends by itself after the others, and unlinks the memory that they shared."""
STUCK = 1
"""The exit code after a shut-down that failed."""
SIGNALLED = 128
"""Added to a signal's number, as shells do: 143 after SIGTERM, 130 after SIGINT."""


def on_signals() -> None:
    """From now on SIGTERM and SIGINT leave, until the server serves and handles them itself.

    As process 1 of a container it needs a handler to be ended by a signal at all.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave_on)


def _leave_on(number: int, _: object) -> None:
    _tell(f"{signal.Signals(number).name} during start-up")
    leave(SIGNALLED + number)


def leave(code: int) -> None:
    """Kills every process below this one and exits, without finalizers and exit handlers."""
    found: set[int] = set()
    # A process that is stopped starts no other, so nothing is left when no more are found.
    while more := below(os.getpid()) - found:
        _send(more, signal.SIGSTOP)
        found |= more
    _send(found, signal.SIGKILL)
    exit_at_once(code)


def below(root: int) -> set[int]:
    """Children of a process and theirs, except for multiprocessing's resource trackers."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        # It may end at any time.
        with suppress(OSError):
            if TRACKER not in (folder / "cmdline").read_bytes():
                # The name, in brackets, may contain anything; state and parent follow it.
                parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(folder.name))
    found: set[int] = set()
    look = [root]
    while look:
        new = children.get(look.pop(), [])
        found.update(new)
        look += new
    return found


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _tell(what: str) -> None:
    # Not through Python's streams, which may be in use by what the signal has interrupted.
    with suppress(OSError):
        os.write(2, f"divserve: {what}: leaving at once\n".encode())


class LastResort:
    """Leaves with `STUCK` unless the process has ended in time; it needs no event loop for that."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._at = math.inf

    def within(self, seconds: float) -> None:
        """Sets the time; of several, the earliest counts.

        Args:
            seconds: from now on.
        """
        at = time.monotonic() + seconds
        if at >= self._at:
            return
        self.cancel()
        self._at, self._cancelled = at, threading.Event()
        wait = partial(self._wait, seconds, self._cancelled)
        threading.Thread(target=wait, name="last-resort", daemon=True).start()

    def cancel(self) -> None:
        """All has been stopped, and this process goes on."""
        self._at = math.inf
        self._cancelled.set()

    def _wait(self, seconds: float, cancelled: threading.Event) -> None:
        if not cancelled.wait(seconds):
            _tell(f"the server has not stopped within {seconds:g} s")
            leave(STUCK)
