"""The disk: full, old, or with files that cannot be read."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from divserve.batches import owner as owners
from divserve.batches.folder import write_whole
from divserve.batches.journal import Journal
from divserve.batches.store import BatchStore
from tests.support.batches import (
    CHAT,
    batch_app,
    begin,
    ended,
    jsonl,
    line,
    lines_of,
    serving,
    until,
    upload,
)  # fmt: skip


@pytest.mark.parametrize("name", ["append", "save"])
def test_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No answer is lost, and none is asked for again."""
    of: Any = {"append": Journal, "save": BatchStore}[name]
    real, left = getattr(of, name), [4]

    def fails(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **options)

    app = batch_app(tmp_path)
    with serving(app) as client:
        monkeypatch.setattr(of, name, fails)
        batch = ended(client, begin(client, line("a"), line("b")))
        assert batch.status == "completed"
        assert len(lines_of(client, batch.output_file_id)) == 2
    assert sorted(app.state.route.asked) == ["a", "b"]
    assert "waits: [Errno 28] No space left on device" in caplog.text


def test_a_full_disk_does_not_keep_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def fails(*args: Any, **options: Any) -> None:
        tries.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    app = batch_app(tmp_path)
    with serving(app) as client, monkeypatch.context() as patched:
        patched.setattr(Journal, "append", fails)
        batch_id = begin(client, line("a"), line("b"))
        until(lambda: len(tries) > 2)
        app.state.traffic.draining = True
        until(lambda: not app.state.batches.owner._lock.is_locked)
    with serving(batch_app(tmp_path)) as client:
        assert ended(client, batch_id).status == "completed"


def test_lines_wait_while_the_folder_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owners, "TIDY_S", 0.05)
    app = batch_app(tmp_path, max_total_bytes=100_000)
    with serving(app) as client:
        ballast = upload(client, b"x" * 90_000)
        batch_id = begin(client, line("a", "x" * 12_000))
        with caplog.at_level(logging.WARNING, "vllm.divserve.batches"):
            until(lambda: app.state.batches.owner._parts.room.paused)
        client.files.delete(ballast)
        assert ended(client, batch_id).status == "completed"


def test_what_is_old_is_removed(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("a"))
        ended(client, batch_id)
    service = app.state.batches
    stored = service.store.load(batch_id)
    stored.batch.expires_at = int(time.time()) - 30 * 86_400 - 1
    service.store.save(stored)
    old = time.time() - 7 * 3600
    left = [tmp_path / "incoming" / "file-x", tmp_path / "files" / "file-x.jsonl"]
    left += [tmp_path / "incoming" / "batch_x", tmp_path / "files" / ".file-x.json.12"]
    left[2].mkdir()
    for path in (left[0], left[1], left[3], left[2] / "input.jsonl"):
        path.write_bytes(b"")
    for path in left:
        os.utime(path, (old, old))
    (tmp_path / "incoming" / "new").write_bytes(b"")
    service.owner._tidy()
    assert not any(path.exists() for path in left)
    assert (tmp_path / "incoming" / "new").exists()
    assert service.store.ids() == []
    assert len([*(tmp_path / "files").iterdir()]) == 4


def test_a_batch_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("a"))
        ended(client, batch_id)
        (tmp_path / "batches" / "batch_x").mkdir()
        broken = tmp_path / "batches" / f"batch_{'0' * 32}"
        broken.mkdir()
        (tmp_path / "batches" / f"batch_{'1' * 32}").mkdir()
        (broken / "batch.json").write_text("{")
        assert [each.id for each in client.batches.list()] == [batch_id]
        assert ended(client, begin(client, line("b"))).status == "completed"


def test_files_are_no_batches_on_a_disk_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving(batch_app(tmp_path)) as client:
        file_id = upload(client, jsonl(line("a")))
        monkeypatch.setattr(Path, "hardlink_to", fails)
        with pytest.raises(openai.APIStatusError) as caught:
            client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert caught.value.status_code == 507
        assert [*(tmp_path / "incoming").iterdir()] == []


def test_what_is_written_in_part_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"before")

    def fails(number: int) -> None:
        raise OSError(errno.EIO, "an error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="an error"):
        write_whole(tmp_path / "a", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"
