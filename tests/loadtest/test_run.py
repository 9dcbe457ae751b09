"""Short load tests from beginning to end, locust and all, against the fake server."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtest import report
from tests.support import fake_openai
from tests.support.fake_openai import TOKENS, Plan
from tests.support.models import ROOT

SECONDS = 3
USERS = 4


def agree(locust: int, ours: int) -> bool:
    """locust's CSV is closed while the last answers are in progress; the samples include them."""
    return 0 <= ours - locust <= USERS


def load(
    url: str, out: Path, *knobs: str, minutes: float = SECONDS / 60
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "loadtest", "--url", url, "--minutes", str(minutes),
        "--users", str(USERS), "--think", "0.05", "--out", str(out), *knobs,
    ]  # fmt: skip
    return subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_load_without_faults(tmp_path: Path) -> None:
    with fake_openai.serving() as (url, fake):
        done = load(url, tmp_path, "--shape", "step", "--mix", "cad=2,adacad+kl_temperature=1")
    assert done.returncode == 0, done.stderr
    assert "Load test" in done.stdout
    run = report.read(tmp_path)
    assert len(run.samples) > 10
    assert {one.outcome for one in run.samples} == {"ok"}
    assert {one.kind for one in run.samples} == {"plain", "cad", "adacad+kl_temperature"}
    assert {one.tokens for one in run.samples} == {TOKENS}
    # The server got a warm-up of each kind, then the samples and nothing else.
    assert len(fake.bodies) == len(run.samples) + 3
    found = {one.name: one for one in run.summaries()}
    assert found["all"].goodput == 1
    assert 5 < 1e3 * found["all"].at("itl", 0.5) < 100

    stats = {(row["Type"], row["Name"]): row for row in table(tmp_path / "locust_stats.csv")}
    assert agree(int(stats["TTFT", "cad"]["Request Count"]), found["cad"].ok)
    gaps = int(stats["ITL", "plain"]["Request Count"])
    assert gaps % (TOKENS - 1) == 0
    assert agree(gaps // (TOKENS - 1), found["plain"].ok)
    assert "Locust" in (tmp_path / "locust.html").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert len(table(tmp_path / "figures.csv")) == len(found)


def unruly(number: int, body: dict[str, Any]) -> str:
    """No fault during the warm-up; then every kind in turn."""
    faults: Sequence[str] = ("ok", "429", "ok", "steps", "ok", "500", "ok", "cut")
    return "ok" if number < 2 else faults[number % len(faults)]


def test_faults_are_failures_and_rejections_are_not(tmp_path: Path) -> None:
    with fake_openai.serving(unruly) as (url, _):
        done = load(url, tmp_path, "--mix", "cad", "--guided-share", "0.6")
    assert done.returncode == 1
    run = report.read(tmp_path)
    errors = run.errors()
    assert set(errors) == {
        "applied_steps is not the number of tokens",
        "HTTP 500: it broke",
        "cut off",
    }
    (everything, *_) = run.summaries()
    assert everything.failed == sum(errors.values())
    assert everything.rejected > 0
    assert everything.goodput == pytest.approx(everything.ok / everything.asked)

    stats = table(tmp_path / "locust_stats.csv")
    rejected = [row for row in stats if row["Type"] == "REJECTED"]
    assert agree(sum(int(row["Request Count"]) for row in rejected), everything.rejected)
    assert sum(int(row["Failure Count"]) for row in rejected) == 0
    failures = table(tmp_path / "locust_failures.csv")
    assert agree(sum(int(row["Occurrences"]) for row in failures), everything.failed)
    assert "cut off" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("knobs", [[], ["--rate", "3"]], ids=["closed", "open"])
def test_a_server_that_goes_silent_fails(
    tmp_path: Path, knobs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users still waiting when the time is over have had no answer, and that counts."""

    def silent(number: int, body: dict[str, Any]) -> str:
        return "ok" if number < 4 else "hang"

    monkeypatch.setenv("DIVSERVE_LAST_ANSWERS_S", "2")
    with fake_openai.serving(silent) as (url, _):
        done = load(url, tmp_path, "--mix", "cad", *knobs, minutes=5 / 60)
    assert done.returncode == 1
    (everything, *_) = report.read(tmp_path).summaries()
    assert everything.failed > 0
    assert everything.failed == everything.asked - everything.ok
    assert set(report.read(tmp_path).errors()) == {"still under way long after the end"}


def test_only_rejections_are_no_failure(tmp_path: Path) -> None:
    def busy(number: int, body: dict[str, Any]) -> str:
        return "429"

    with fake_openai.serving(busy) as (url, _):
        done = load(url, tmp_path, minutes=2 / 60)
    assert done.returncode == 0, done.stderr
    (everything, *_) = report.read(tmp_path).summaries()
    assert everything.rejected == everything.asked > 0
    assert everything.at("rejected", 0.5) < 1


def test_several_processes_leave_one_report(tmp_path: Path) -> None:
    with fake_openai.serving() as (url, fake):
        # A step of eight users begins with two: one for each process, from the first second on.
        knobs = ("--processes", "2", "--shape", "step", "--users", "8", "--notes", "9")
        done = load(url, tmp_path, *knobs)
    assert done.returncode == 0, done.stderr
    run = report.read(tmp_path)
    assert len([path for path in tmp_path.glob("samples-*.jsonl") if path.stat().st_size]) == 2
    assert len(fake.bodies) == len(run.samples) + 4
    # Users of different processes do not send the same requests.
    asked = [str(body["messages"]) for body in fake.bodies]
    assert len(set(asked)) == len(asked)


def always(fault: str) -> Plan:
    return lambda number, body: fault


def test_what_cannot_work_is_said_before_the_load(tmp_path: Path) -> None:
    with fake_openai.serving(always("500")) as (url, fake):
        done = load(url, tmp_path)
    assert done.returncode == 1
    assert done.stderr == "the warm-up failed: plain: HTTP 500: it broke\n"
    assert len(fake.bodies) == 1


@pytest.mark.parametrize(
    ("knob", "says"),
    [
        ("--mix=nope", "'nope' is no method"),
        ("--guided-share=1.5", "a share is from 0 to 1"),
        ("--max-tokens=0", "is no range of tokens"),
        ("--shape=square", "invalid choice"),
    ],
)
def test_wrong_knobs(tmp_path: Path, knob: str, says: str) -> None:
    done = load("http://127.0.0.1:9", tmp_path, knob)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_report_can_be_drawn_again(tmp_path: Path) -> None:
    with fake_openai.serving() as (url, _):
        load(url, tmp_path, minutes=2 / 60)
    drawn = (tmp_path / "report.svg").read_text()
    (tmp_path / "report.svg").unlink()
    command = [sys.executable, "-m", "loadtest.report", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=60)
    assert (tmp_path / "report.svg").read_text() == drawn
    assert json.loads((tmp_path / "run.json").read_text())["users"] == 4


def test_an_open_loop_at_a_share_of_the_peak(tmp_path: Path) -> None:
    """The fake server answers at any speed, so the share is small."""
    knobs = ("--load", "0.02", "--calibration", "4", "--guided-share", "0")
    with fake_openai.serving() as (url, _):
        done = load(url, tmp_path, *knobs, minutes=10 / 60)
    assert done.returncode == 0, done.stderr
    run = report.read(tmp_path)
    assert run.about["load"] == 0.02
    assert run.rate == pytest.approx(0.02 * run.about["peak"])
    wanted = run.rate * run.seconds
    assert abs(len(run.samples) - wanted) < 4 * wanted**0.5 + 1
    assert len({one.began for one in run.samples}) == len(run.samples)
    assert "Steadiness" in done.stdout


def test_open_arrivals_do_not_wait_for_answers(tmp_path: Path) -> None:
    with fake_openai.serving() as (url, _):
        done = load(url, tmp_path, "--rate", "60", "--users", "2")
    assert done.returncode == 0, done.stderr
    # Two users that waited for answers would send at most 2 / (7 × STEP_S) requests per second.
    assert len(report.read(tmp_path).samples) > 40 * SECONDS
