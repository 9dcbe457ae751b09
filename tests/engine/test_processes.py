"""The parent of several API processes: its handling of signals. The rest is in tests/e2e."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from tests.support.models import ROOT

PARENT = """
import json, os, signal, time
from multiprocessing import get_context
from divserve.startup.processes import CLOSE_S, _Stop

reading, writing = os.pipe()

def child():
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: os.write(writing, bytes([got])))
    os.write(writing, bytes([0]))
    time.sleep(60)

def heard():
    return os.read(reading, 1)[0]

process = get_context("fork").Process(target=child)
process.start()
assert heard() == 0
stopping = _Stop(passes_on_reload=True)
stopping.take_signals([process])
found = {"before": stopping.deadline(2)}
os.kill(os.getpid(), signal.SIGHUP)
found["reload"] = heard()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except SystemExit:
    found["stops"] = True
found["left"] = stopping.deadline(2) - time.monotonic() - CLOSE_S
os.kill(os.getpid(), signal.SIGINT)
found["hurries"] = heard()
process.kill()
process.join()
os.kill(os.getpid(), signal.SIGTERM)
print(json.dumps(found))
"""


def test_what_the_parent_does_with_signals() -> None:
    """The first signal ends its wait, a second one is passed to the API processes; so is SIGHUP."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 1 < found.pop("left") <= 2, "a drain's time, and what processes need to close"
    assert found == {
        "before": None,
        "reload": signal.SIGHUP,
        "stops": True,
        "hurries": signal.SIGTERM,
    }
