"""What is done once a second, or every few, is done at once."""

from __future__ import annotations

import pytest

from divserve.batches import owner as owners
from divserve.batches import runner as runners


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "LOOK_S", 0.05)
    monkeypatch.setattr(owners, "LOCK_S", 0.05)
    monkeypatch.setattr(runners, "RETRY_S", 0.05)
