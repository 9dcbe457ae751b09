"""Tests that hang end, and say where; on a GPU all that are marked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import limit
from tests.support.models import ROOT

ENVIRONMENT = dict(os.environ)
HANGING = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(other.pid, file=sys.stderr, flush=True)
def hang():
    time.sleep(600)
hang()
"""
ON_A_GPU = """
import sys, pytest, torch

torch.cuda.is_available = lambda: True
import tests.conftest as plugin

plugin.LIMIT_S = 1
sys.exit(pytest.main([*sys.argv[1:], "-p", "no:cacheprovider", "-p", "no:locust"], [plugin]))
"""
TESTS = """
import time, warnings
import pytest

def test_it_warns():
    warnings.warn("CUDA says something", UserWarning)

def test_for_any_machine():
    time.sleep(1.5)

@pytest.mark.gpu
def test_that_hangs():
    time.sleep(600)
"""
SETTINGS = """
[pytest]
markers = gpu
filterwarnings =
    error
    ignore:Module already imported:pytest.PytestAssertRewriteWarning
"""


def test_a_process_that_hangs_ends_with_all_it_started() -> None:
    with pytest.raises(RuntimeError, match=r"no end within 1\.5 s") as ended:
        limit.run([sys.executable, "-c", HANGING], ENVIRONMENT, 1.5)
    assert "in hang" in str(ended.value)
    other = int(str(ended.value).splitlines()[1])
    assert not psutil.pid_exists(other) or psutil.Process(other).status() == psutil.STATUS_ZOMBIE


def test_output_and_failure_of_a_process() -> None:
    assert limit.run([sys.executable, "-c", "print(5)"], ENVIRONMENT, 60) == "5\n"
    failing = "import sys; print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"exit status 3:\nwhy"):
        limit.run([sys.executable, "-c", failing], ENVIRONMENT, 60)


def test_on_a_gpu_tests_are_bounded_and_warnings_end_none(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    run = subprocess.run(
        [sys.executable, "-c", ON_A_GPU, str(file), "-v"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = run.stdout + run.stderr
    assert run.returncode == 1, said
    assert "test_it_warns PASSED" in run.stdout
    assert "test_for_any_machine PASSED" in run.stdout
    assert "in test_that_hangs" in run.stderr, said
