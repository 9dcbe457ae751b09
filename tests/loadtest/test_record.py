"""Figures say which commit, machine and command they are of."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest

from loadtest import record


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the figures go."""
    path = tmp_path / "results.csv"
    monkeypatch.setattr(record, "RESULTS", path)
    return path


def noted(results: Path) -> list[dict[str, str]]:
    record.append("some", "make some", [{"case": "a", "metric": "b", "value": "1", "spread": ""}])
    with results.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_commit_is_told_where_git_is_not(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(record.COMMIT, "0123abc")
    assert [line["commit"] for line in noted(results)] == ["0123abc"]


def test_the_commit_is_gits_otherwise(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(record.COMMIT, raising=False)
    monkeypatch.setattr(record, "RESULTS", results)
    (line,) = noted(results)
    assert re.fullmatch(r"unknown|[0-9a-f]{7,}\+?", line["commit"])
    assert line["hardware"]


def test_the_command_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["some.py", "--pairs", "8"])
    assert record.asked("bench.some") == "python -m bench.some --pairs 8"
