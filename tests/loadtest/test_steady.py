"""Memory over time, drift of latencies, readings of a server, and the peak."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from divserve.plots import svg
from loadtest import report
from loadtest.draw import drawing
from loadtest.figures import Run
from loadtest.monitor import Monitor, Reading, gauges, read_readings
from loadtest.sample import Sample
from loadtest.steady import changes, slope
from loadtest.swarm import capacity
from tests.loadtest.test_figures import ABOUT

HOUR = ABOUT | {"began": 0.0, "seconds": 3600, "rate": 0.5}


def held(memory: Any, every_s: float = 10.0) -> list[Reading]:
    """Readings of one hour, with memory as a function of the seconds."""
    times = [n * every_s for n in range(int(3600 / every_s))]
    return [Reading(at, memory=memory(at), files=100 + int(at > 1800)) for at in times]


def asked(slow: float = 1.0, seed: int = 0) -> list[Sample]:
    """One hour of answers of random speed; those of the last third take ``slow`` times as long."""
    rng, found = random.Random(seed), []
    for at in range(0, 3600, 2):
        pace = (0.5 + rng.random()) * (slow if at > 2520 else 1)
        chunks = [(pace * 0.1 * (n + 1), 1) for n in range(10)]
        found.append(Sample("plain", float(at), pace, "ok", chunks=chunks))
    return found


def test_the_slope_leaves_out_the_warm_up_and_is_not_misled_by_a_few_readings() -> None:
    def memory(at: float) -> float:
        return at * 100 if at < 360 else 2000 + at / 3600 * 12 + 500 * (at % 400 == 0)

    found = slope(Run(HOUR, [], held(memory)))
    assert found is not None
    assert found.mb_per_hour == pytest.approx(12, rel=0.05)
    assert found.low <= found.mb_per_hour <= found.high
    assert found.share_per_hour == pytest.approx(0.006, rel=0.05)


@pytest.mark.parametrize("readings", [[], held(lambda at: None), held(lambda at: 1.0)[:2]])
def test_without_readings_there_is_no_slope(readings: list[Reading]) -> None:
    assert slope(Run(HOUR, [], readings)) is None


def test_flat_memory_is_flat() -> None:
    found = slope(Run(HOUR, [], held(lambda at: 2000.0)))
    assert found is not None
    assert (found.mb_per_hour, found.low, found.high) == (0, 0, 0)


def test_the_same_speed_is_within_the_interval_and_slower_is_not() -> None:
    for slow in (1.0, 1.3):
        found = {one.name: one for one in changes(Run(HOUR, asked(slow)))}
        assert list(found) == ["TTFT p99 ms", "ITL p99 ms", "E2E p99 ms"]
        for one in found.values():
            assert one.low <= one.share <= one.high
            assert one.share == pytest.approx(slow - 1, abs=0.05)
            assert (one.low <= 0 <= one.high) is (slow == 1.0)


def test_memory_and_files_are_compared_by_their_medians() -> None:
    found = {one.name: one for one in changes(Run(HOUR, [], held(lambda at: 1000 + at)))}
    assert found["memory MB"].first == pytest.approx(1900, abs=10)
    assert found["memory MB"].last == pytest.approx(4060, abs=10)
    assert (found["open files"].first, found["open files"].last) == (100, 101)
    assert math.isnan(found["memory MB"].low)


def test_the_report_and_the_picture_tell_of_the_server(tmp_path: Path) -> None:
    run = Run(HOUR | {"load": 0.7, "peak": 0.71}, asked(), held(lambda at: 2000.0))
    report.write(run, tmp_path)
    steady = (tmp_path / "steady.csv").read_text().splitlines()
    assert steady[0] == ",first third,last third,change,interval of 95 %"
    assert steady[4:] == [
        "memory MB,2000.0,2000.0,+0.0 %,–",
        "open files,100,101,+1.0 %,–",
        "memory MB/h,–,–,+0.00 (+0.00 %),+0.00 to +0.00",
    ]
    assert "memory MB/h" in (tmp_path / "report.html").read_text()
    picture = svg(drawing(run))
    assert "Memory of the server, MB" in picture
    assert ">Rows<" not in picture
    assert ">minutes<" in picture
    lines = report.lines(run)
    assert lines[0]["case"].startswith("0.5 requests/s (70 % of 0.71), 3600 s")
    assert lines[-1]["metric"] == "steadiness: memory MB/h"


def test_the_peak_is_what_ended_after_the_beginning() -> None:
    def ended(at: float, outcome: Any = "ok") -> Sample:
        return Sample("plain", 100 + at - 1, 1.0, outcome)

    samples = [ended(2), ended(3), ended(5), ended(9), ended(12), ended(6, "rejected")]
    assert capacity(Run(ABOUT, samples)) == pytest.approx(3 / 7.5)


def test_gauges_of_several_engines_are_added_up() -> None:
    lines = [
        f'vllm:{name}{{engine="{engine}"}} {value}'
        for name, values in {
            "num_requests_running": (3, 4),
            "num_requests_waiting": (0, 2),
            "kv_cache_usage_perc": (0.5, 0.25),
            "num_preemptions_total": (9, 9),
        }.items()
        for engine, value in enumerate(values)
    ]
    assert gauges("\n".join(lines)) == {"running": 7, "waiting": 2, "kv": 0.5}


def test_a_monitor_reads_a_process_and_bears_a_server_without_metrics(tmp_path: Path) -> None:
    monitor = Monitor("http://127.0.0.1:9", os.getpid(), tmp_path, every_s=60)
    monitor.look()
    monitor.look()
    (one,) = read_readings(tmp_path)
    assert one.memory is not None
    assert one.resident is not None
    assert 10 < one.memory <= one.resident
    assert one.files is not None
    assert one.files > 2
    assert (one.running, one.kv) == (None, None)
