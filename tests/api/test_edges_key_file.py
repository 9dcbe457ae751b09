"""A key file that disappears, or cannot be read for a while."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from divserve.edges import keys
from divserve.edges.keys import KeyRing

UNREAD = "--api-key-file is not read again, old keys stay: "


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is checked at every request."""
    monkeypatch.setattr(keys, "CHECK_EVERY_S", 0.0)
    monkeypatch.setattr(keys, "logger", logging.getLogger("of the test"))
    path = tmp_path / "keys"
    path.write_text("alice:sk-old\n")
    return path


def test_what_could_not_be_read_is_tried_again(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its keys are accepted once it can be read, although nothing else about the file changes."""
    ring, read, broken = KeyRing(file=file), keys.read_keys, True

    def read_keys(path: Path) -> dict[bytes, str]:
        if broken:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(keys, "read_keys", read_keys)
    file.write_text("alice:sk-newer\n")
    assert [ring.name_of(b"sk-old") for _ in range(3)] == ["alice"] * 3
    assert [record.getMessage() for record in caplog.records] == [f"{UNREAD}Permission denied"]
    broken = False
    assert ring.name_of(b"sk-old") is None
    assert ring.name_of(b"sk-newer") == "alice"


def test_a_file_that_is_gone_is_told_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the file is being replaced it is missing for a moment, which is not logged again."""
    ring = KeyRing(file=file)
    file.unlink()
    assert ring.name_of(b"sk-old") == "alice"
    assert caplog.records == []
    file.write_text("alice:sk-old\n")
    assert ring.name_of(b"sk-old") == "alice"
    file.unlink()
    assert [ring.name_of(b"sk-old") for _ in range(4)] == ["alice"] * 4
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{UNREAD}No such file or directory"]
    file.write_text("alice:sk-newer\n")
    assert ring.name_of(b"sk-newer") == "alice"
