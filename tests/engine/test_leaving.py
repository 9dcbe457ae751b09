"""Leaving at once, from processes of our own that hold on as engines do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from divserve.startup import leaving
from tests.support.models import ROOT

WITHIN_S = 10.0

HOLDING = """
import signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if sys.argv[1:]:
    below = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    print(below.pid, flush=True)
time.sleep(600)
"""
"""A process that no polite signal ends, above another one if it is given one."""

STARTING = """
import subprocess, sys, time
from multiprocessing import shared_memory
from divserve.startup import leaving
leaving.on_signals()
shared = shared_memory.SharedMemory(create=True, size=64)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]])
print(child.pid, shared.name, flush=True)
while True:
    # What vLLM does with an interrupt while it waits for an engine.
    try:
        time.sleep(600)
    except BaseException:
        pass
"""

STUCK = """
import subprocess, sys, time
from divserve.startup.leaving import LastResort
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
last_resort = LastResort()
last_resort.within(0.5)
last_resort.within(600)
time.sleep(600)
"""


def start(code: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, HOLDING],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_all_processes(number: signal.Signals) -> None:
    process = start(STARTING)
    assert process.stdout is not None
    child, memory = process.stdout.readline().split()
    # The grandchild's id comes from the child, over the same pipe.
    pids = [int(child), int(process.stdout.readline())]
    process.send_signal(number)
    assert process.wait(WITHIN_S) == 128 + number
    _, errors = process.communicate()
    assert errors == f"divserve: {number.name} during start-up: leaving at once\n"
    deadline = time.monotonic() + WITHIN_S
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # Python's resource tracker is spared: it unlinks what the others have shared.
    while Path("/dev/shm", memory).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_is_stuck_leaves_with_what_is_below_it() -> None:
    process = start(STUCK)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert process.wait(WITHIN_S) == leaving.STUCK
    _, errors = process.communicate()
    assert errors == ("divserve: the server has not stopped within 0.5 s: leaving at once\n")
    deadline = time.monotonic() + WITHIN_S
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_last_resort_that_is_cancelled_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(leaving, "leave", left.append)
    last_resort = leaving.LastResort()
    last_resort.within(0.05)
    last_resort.cancel()
    time.sleep(0.15)
    assert left == []
    last_resort.within(0.05)
    deadline = time.monotonic() + WITHIN_S
    while not left:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left == [leaving.STUCK]
