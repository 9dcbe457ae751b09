"""Figures on their way into the metrics, one by one and from several processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

from divserve.api.tally import MOST_PENDING, Tally
from divserve.decoding import METHODS, STATISTICS, LookRow, LookState, Stack
from tests.support.metrics import Changes
from tests.support.models import ROOT


@pytest.fixture
def changes() -> Changes:
    """What the registry has counted since the test began."""
    return Changes(lambda: generate_latest(REGISTRY).decode())


def test_long_answers_are_counted_while_they_run(changes: Changes) -> None:
    tally = Tally("cad")
    for done in range(MOST_PENDING):
        assert changes.of("guided_steps_total") == 0 or done == MOST_PENDING
        tally.add([{"kl": math.inf if done else 0.5}], ())
    assert changes.of("guided_steps_total") == MOST_PENDING
    assert changes.of("kl_nats_count", method="cad") == 1, (
        "figures that are not finite are left out"
    )
    tally.flush()
    assert changes.of("guided_steps_total") == MOST_PENDING


def test_figures_of_look_back(changes: Changes) -> None:
    """As the method reports them; a first step has nothing to be compared with."""
    stack = Stack(METHODS["look_back"](method="look_back"))
    own = dict.fromkeys(STATISTICS, 0.0) | {"entropy": 1.5}
    found = [
        LookRow(math.inf, 0, LookState.CLEAR, (), ()),
        LookRow(0.2, 3, LookState.CHOSEN, (7, 8), (0.1, 0.4)),
        LookRow(2.5, 1, LookState.CLEAR, (), ()),
    ]
    rows = [(*own.values(), *look.flat()) for look in found]
    tally = Tally(stack.name)
    tally.add([stack.report(row, 1.0) for row in rows], ())
    tally.flush()
    assert changes.of("look_back_tokens_total") == 3
    assert changes.of("look_back_alarms_total") == 1
    assert changes.of("look_back_kl_min_nats_count") == 2
    assert changes.of("look_back_kl_min_nats_sum") == pytest.approx(2.7)
    assert changes.of("entropy_nats_sum", method="look_back") == pytest.approx(4.5)


def test_bits_are_counted_in_nats(changes: Changes) -> None:
    tally = Tally("entropy_switch")
    tally.add([{"entropy_bits": 2.0}], ["small"])
    tally.flush()
    assert changes.of("entropy_nats_sum", method="entropy_switch") == pytest.approx(2 * math.log(2))
    assert changes.of("switched_tokens_total", model="small") == 1


CHILD = """
from divserve import metrics
from divserve.api.tally import Tally
tally = Tally("cad")
tally.add([{"kl": 0.5, "jsd": 0.1, "entropy": 1.0}] * 3, ["small"])
tally.add_drafts({"proposed": 5, "accepted": 2, "rounds": 1})
tally.flush()
metrics.REQUESTS.labels("cad", "ok").inc()
metrics.broken_pair("no_report", 2)
metrics.ENGINE_UP.labels("large").set({alive})
metrics.ENGINE_REQUESTS.labels("small", "running").set(1)
import sys; sys.stdout.write("done"); sys.stdout.flush(); sys.stdin.read()
"""


def test_several_processes_are_added_up(tmp_path: Path) -> None:
    """As with several API processes: all write to one folder, and the scrape adds them up."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    children = [_child(tmp_path, CHILD.replace("{alive}", alive)) for alive in ("1", "0")]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.read(4) == b"done"
        collected = CollectorRegistry()
        MultiProcessCollector(collected, path=str(tmp_path))  # type: ignore[no-untyped-call]
        text = generate_latest(collected).decode()
    finally:
        for child in children:
            child.communicate(b"")
    for line in (
        'divserve_requests_total{method="cad",outcome="ok"} 2.0',
        "divserve_guided_steps_total 6.0",
        "divserve_unguided_steps_total 4.0",
        'divserve_kl_nats_bucket{le="+Inf",method="cad"} 6.0',
        'divserve_kl_nats_sum{method="cad"} 3.0',
        'divserve_draft_proposed_tokens_total{method="cad"} 10.0',
        'divserve_draft_accepted_tokens_total{method="cad"} 4.0',
        'divserve_draft_rounds_total{method="cad"} 2.0',
        'divserve_engine_up{engine="large"} 0.0',
        'divserve_engine_requests{engine="small",state="running"} 2.0',
    ):
        assert line in text.splitlines()


def _child(folder: Path, code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
