"""Restarts, drains and faults: nothing is lost, nothing is done twice, nothing hangs."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from divserve.batches import owner as owners
from divserve.batches import runner as runners
from divserve.batches.answering import Answering
from divserve.batches.journal import Journal
from divserve.batches.store import StoredBatch
from tests.support.batches import (
    batch_app,
    begin,
    ended,
    line,
    lines_of,
    serving,
    until,
)  # fmt: skip


def test_a_batch_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Stopped in the middle: what was answered is not asked again, and nothing is lost."""
    lines = [*(line(f"a{n}") for n in range(30)), *(line(f"w{n}", f"wait {n}") for n in range(30))]
    first = batch_app(tmp_path)
    with serving(first) as client:
        batch_id = begin(client, *lines)
        until(lambda: first.state.route.waiting == 2)
        start = time.monotonic()
    assert time.monotonic() - start < 10
    assert first.state.route.aborted == 2
    second = batch_app(tmp_path)
    second.state.route.gate.set()
    with serving(second) as client:
        batch = ended(client, batch_id)
        output = Counter(each["custom_id"] for each in lines_of(client, batch.output_file_id))
    assert batch.status == "completed"
    assert output == Counter(each["custom_id"] for each in lines)
    assert not {*second.state.route.asked} & {f"a{n}" for n in range(30)}


def test_answered_but_not_recorded_is_answered_again(tmp_path: Path) -> None:
    """A kill between the answer and its line, and one in the middle of the line."""
    first = batch_app(tmp_path)
    with serving(first) as client:
        batch_id = begin(client, line("a"), line("b"), line("c", "wait"))
        until(lambda: first.state.route.waiting == 1 and len(first.state.route.asked) == 3)
    output = tmp_path / "batches" / batch_id / "output.jsonl"
    whole = output.read_bytes().splitlines(keepends=True)
    assert len(whole) == 2
    output.write_bytes(whole[0] + whole[1][:40])
    second = batch_app(tmp_path)
    second.state.route.gate.set()
    with serving(second) as client:
        batch = ended(client, batch_id)
        found = [each["custom_id"] for each in lines_of(client, batch.output_file_id)]
    assert sorted(found) == ["a", "b", "c"]
    assert sorted(second.state.route.asked) == sorted([json.loads(whole[1])["custom_id"], "wait"])


@pytest.mark.parametrize("moved", [False, True])
def test_a_kill_while_results_are_published(tmp_path: Path, moved: bool) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("a", "wait"), line("b", "wait"))
        until(lambda: app.state.route.waiting == 2)
    store, files = app.state.batches.store, app.state.batches.files
    stored: StoredBatch = store.load(batch_id)
    journal = Journal(store.path(batch_id))
    for name in ("a", "b"):
        journal.append({"custom_id": name}, failed=name == "b")
    journal.close()
    stored.batch.status = "finalizing"
    store.save(stored)
    if moved:
        (store.path(batch_id) / "output.jsonl").rename(files.path(stored.output_id))
    again = batch_app(tmp_path)
    with serving(again) as client:
        batch = ended(client, batch_id)
        assert batch.status == "completed"
        assert lines_of(client, batch.output_file_id) == [{"custom_id": "a"}]
        assert lines_of(client, batch.error_file_id) == [{"custom_id": "b"}]
    assert again.state.route.asked == []


def test_the_drain_ends_lines_at_once(tmp_path: Path) -> None:
    """The drain of the server does not wait for them, and they are no failures."""
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("a", "wait"), line("b", "wait"), line("c", "wait"))
        until(lambda: app.state.route.waiting == 2)
        app.state.traffic.draining = True
        until(lambda: len(app.state.traffic) == 0)
        until(lambda: not app.state.batches.owner._lock.is_locked)
        assert app.state.batches.store.load(batch_id).batch.status == "in_progress"
    assert (tmp_path / "batches" / batch_id / "errors.jsonl").read_bytes() == b""


@pytest.mark.parametrize("pause_s", [0, 0.01, 0.02, 0.05, 0.1, 0.2])
def test_stopping_never_hangs(tmp_path: Path, pause_s: float) -> None:
    app = batch_app(tmp_path)
    ids: list[str] = []

    def serve() -> None:
        with serving(app) as client:
            ids.extend(begin(client, *(line(str(n)) for n in range(40))) for _ in range(3))
            time.sleep(pause_s)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    with serving(batch_app(tmp_path)) as client:
        for batch_id in ids:
            found = lines_of(client, ended(client, batch_id).output_file_id)
            assert sorted(int(each["custom_id"]) for each in found) == [*range(40)]


@pytest.mark.parametrize("count", [1, 10])
def test_a_batch_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    real, left = Answering._write, [2]

    def fails(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("a bug")
        return real(*args)

    monkeypatch.setattr(Answering, "_write", fails)
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch = ended(client, begin(client, *(line(str(n)) for n in range(count))))
        assert len(lines_of(client, batch.output_file_id)) == count
    assert "was interrupted; it goes on later" in caplog.text


def test_the_folder_is_searched_again_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = batch_app(tmp_path)
    real, left = app.state.batches.store.ids, [2]

    def fails() -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "an error")
        return real()

    monkeypatch.setattr(app.state.batches.store, "ids", fails)
    with serving(app) as client:
        until(lambda: not left[0])
        assert ended(client, begin(client, line("a"))).status == "completed"
    assert "cannot be read; trying again" in caplog.text


def test_the_owner_is_ended_although_a_batch_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "STOP_S", 0.1)

    async def hangs(self: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(runners.Run, "run", hangs)
    app = batch_app(tmp_path)
    with serving(app) as client:
        begin(client, line("a"))
        until(lambda: app.state.batches.owner._active)
    assert not app.state.batches.owner._active
    assert not app.state.batches.owner._lock.is_locked
