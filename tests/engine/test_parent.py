"""An engine does not outlive the process that started it, even one that is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from divserve.engine.scheduler import parent

SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 60.0
"""Only a hang takes so long."""


def engine(told: Connection, deaf: bool) -> None:
    """Runs until it is ended; `deaf` to the signal that ends it in order."""
    if deaf:
        parent.GRACE_S = 0.1
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent.end_with_parent()
    told.send(os.getpid())
    time.sleep(2 * WAIT_S)


def server(told: Connection, deaf: bool) -> None:
    SPAWN.Process(target=engine, args=(told, deaf)).start()
    time.sleep(2 * WAIT_S)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_killed_server_takes_its_engine_with_it(deaf: bool) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=server, args=(theirs, deaf))
    process.start()
    theirs.close()
    assert ours.poll(WAIT_S)
    ours.recv()
    process.kill()
    # Once the engine has ended, too, nobody has the other end.
    assert ours.poll(WAIT_S)
    with pytest.raises(EOFError):
        ours.recv()


def test_a_process_that_nobody_has_started_watches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)

    def thread(**_: Any) -> None:
        pytest.fail("it watches")

    monkeypatch.setattr(parent, "Thread", thread)
    parent.end_with_parent()
