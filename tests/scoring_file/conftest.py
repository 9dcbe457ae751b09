"""Replaces the client of a run."""

from __future__ import annotations

import pytest

from divserve.scoring_file import run
from tests.scoring_file.scripted import Scripted


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted.bodies, Scripted.fail_at, Scripted.stop_at = [], 10**6, 10**6
    Scripted.at_once = Scripted.most_at_once = 0
    monkeypatch.setattr(run, "Server", Scripted)
