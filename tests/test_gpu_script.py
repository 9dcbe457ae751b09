"""bench/gpu.sh: its stages call what exists, with options that exist, and go on after a failure."""

from __future__ import annotations

import importlib
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.support.models import ROOT

STAGES = (
    "check",
    "kernels",
    "identity",
    "identity2",
    "model",
    "smoke",
    "speed",
    "speed2",
    "report",
)
RECORDER = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *"$FAILING"*) exit 3 ;; esac
"""
"""Stands in for Python: notes its arguments and fails where told to."""


RUNS = {
    "lockstep": ["--no-save", "--tokens", "4", "--rounds", "1", "--pairs", "2"],
    "menu": ["--no-save", "--tokens", "4", "--rounds", "1"],
    "two_models": ["--no-save", "--tokens", "4", "--rounds", "1", "--only", "contrast"],
    "look_back": ["--tokens", "4", "--rounds", "1", "--only", "itl"],
    "step_overhead": ["--no-save", "--steps", "10", "--pairs", "2"],
    "speculation": ["--quick"],
}
"""Options with which a bench of engines takes half a minute on a CPU."""


def run(folder: Path, *stages: str, failing: str = "no such", **more: str) -> tuple[int, str]:
    """Exit status and output of the script with a Python that only notes what it is told."""
    python = folder / "python"
    python.write_text(RECORDER)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    variables = {
        **os.environ,
        "PYTHON": str(python),
        "CALLS": str(folder / "calls"),
        "FAILING": failing,
        "OUT": str(folder / "out"),
        "MODEL_OUT": str(folder),
        "REHEARSE": "1",
        **more,
    }
    done = subprocess.run(
        ["bash", "bench/gpu.sh", *stages],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def calls(folder: Path) -> list[list[str]]:
    """The arguments of every call."""
    return [shlex.split(line) for line in (folder / "calls").read_text().splitlines()]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The calls of all stages."""
    folder = tmp_path_factory.mktemp("rehearsed")
    status, output = run(folder, *STAGES)
    assert status == 0, output
    return calls(folder)


def test_benches_and_their_options_exist(rehearsed: list[list[str]]) -> None:
    benches = [call[1:] for call in rehearsed if call[0] == "-m" and call[1].startswith("bench.")]
    assert {name for name, *_ in benches} >= {"bench.lockstep", "bench.smoke", "bench.performance"}
    for name, *arguments in benches:
        module = importlib.import_module(name)
        if arguments and name != "bench.smoke":  # Its flags are those of divserve serve.
            app = typer.Typer()
            app.command()(module.main)
            typer.main.get_command(app).make_context(name, list(arguments))


def test_tests_exist(rehearsed: list[list[str]]) -> None:
    found = [call for call in rehearsed if call[:2] == ["-m", "pytest"]]
    paths = {part for call in found for part in call if part.startswith("tests/")}
    assert "tests/engine" in paths
    assert all((ROOT / path).exists() for path in paths)


def test_all_has_every_stage_but_the_slow_ones(tmp_path: Path, rehearsed: list[list[str]]) -> None:
    status, output = run(tmp_path, "all")
    assert status == 0, output
    slow = {"identity2", "speed2"}
    rest = tmp_path / "rest"
    rest.mkdir()
    run(rest, *(stage for stage in STAGES if stage not in slow))
    assert len(calls(tmp_path)) == len(calls(rest)) < len(rehearsed)


def test_a_failing_step_does_not_stop_the_next(tmp_path: Path) -> None:
    status, output = run(tmp_path, "check", "nothing", "report", failing="doctor")
    assert status == 1
    assert "no stage nothing" in output
    assert [call[1] for call in calls(tmp_path)] == ["divserve", "divserve", "bench.performance"]
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "doctor: exit 3" in summary
    assert "bench.performance : exit 0" in summary


@pytest.mark.long
@pytest.mark.parametrize("bench", RUNS)
def test_benches_of_engines_run(bench: str) -> None:
    """With the smallest model: nothing else runs them until someone wants a figure."""
    arguments = ["--size", "tiny", "--dtype", "float32", *RUNS[bench]]
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{bench}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tiny, eager, float32" in done.stdout


def test_it_wants_a_gpu(tmp_path: Path) -> None:
    nowhere = tmp_path / "bin"
    nowhere.mkdir()
    for tool in ("bash", "dirname", "mkdir", "git"):
        (nowhere / tool).symlink_to(f"/usr/bin/{tool}")
    status, output = run(tmp_path, "check", REHEARSE="", PATH=str(nowhere))
    assert status == 1
    assert "needs an NVIDIA GPU" in output
    assert not (tmp_path / "calls").exists()


def test_the_environment_and_the_image_have_one_lock_file() -> None:
    image, makefile = (ROOT / name for name in ("deploy/Dockerfile", "Makefile"))
    assert "-r requirements/cuda.lock" in image.read_text(encoding="utf-8")
    text = makefile.read_text(encoding="utf-8")
    assert "LOCK=cuda" in text
    assert "-r requirements/$(1).lock" in text
