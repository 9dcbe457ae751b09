"""The process that runs the batches: restarts, the lock, drains and other processes."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from divserve.batches import owner as owners
from divserve.batches import runner as runners
from divserve.batches.answering import Answering
from divserve.batches.folder import write_whole
from divserve.batches.journal import Journal
from divserve.batches.store import BatchStore, StoredBatch
from tests.support.batches import (
    CHAT,
    batch_app,
    begin,
    client_of,
    ended,
    jsonl,
    line,
    lines_of,
    serving,
    until,
    upload,
)  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "LOOK_S", 0.05)
    monkeypatch.setattr(owners, "LOCK_S", 0.05)
    monkeypatch.setattr(runners, "RETRY_S", 0.05)


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
        journal.append(name, json.dumps({"custom_id": name}).encode() + b"\n", failed=name == "b")
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


def test_one_process_runs_them_and_another_takes_over(tmp_path: Path) -> None:
    one, two = batch_app(tmp_path), batch_app(tmp_path)
    two.state.route.gate.set()
    with TestClient(one) as http:
        until(lambda: one.state.batches.owner._lock.is_locked)
        with TestClient(two) as other:
            client = client_of(other)
            batch_id = begin(client, line("a"), line("b", "wait"))
            until(lambda: one.state.route.waiting == 1, "the owner's request")
            # Both tell the same.
            assert client.batches.retrieve(batch_id) == client_of(http).batches.retrieve(batch_id)
            assert two.state.route.asked == []
            http.__exit__()
            assert ended(client, batch_id).status == "completed"
            assert two.state.route.asked == ["wait"]
            http.__enter__()


def test_another_process_may_cancel(tmp_path: Path) -> None:
    one, two = batch_app(tmp_path), batch_app(tmp_path)
    with TestClient(one) as http:
        client = client_of(http)
        batch_id = begin(client, line("a", "wait"))
        until(lambda: one.state.route.waiting == 1)
        with TestClient(two) as other:
            assert client_of(other).batches.cancel(batch_id).status == "cancelling"
        assert ended(client, batch_id).status == "cancelled"


def test_a_batch_that_was_cancelled_before_it_began(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    # Nothing runs outside the lifespan.
    client = client_of(TestClient(app))
    ids = [begin(client, line("a")) for _ in range(2)]
    for batch_id in ids:
        assert client.batches.retrieve(batch_id).status == "validating"
        assert client.batches.cancel(batch_id).status == "cancelling"
        assert client.batches.cancel(batch_id).status == "cancelling"
    with serving(app) as client:
        batch = ended(client, ids[0])
        assert (batch.status, batch.output_file_id) == ("cancelled", None)
        assert ended(client, ids[1]).status == "cancelled"
    assert app.state.route.asked == []


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


def test_batches_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small batch does not wait for the end of a large one, nor a client for another's."""
    monkeypatch.setattr(owners, "MOST_ACTIVE", 2)
    app = batch_app(tmp_path, keys=["sk-1", "sk-2"])
    with TestClient(app) as http:
        one, two = client_of(http, "sk-1"), client_of(http, "sk-2")
        large = [begin(one, *(line(f"{n}", f"wait {m} {n}") for n in range(9))) for m in range(2)]
        until(lambda: app.state.route.waiting == 2)
        small = begin(two, line("small"))
        time.sleep(0.2)
        assert two.batches.retrieve(small).status == "validating"
        one.batches.cancel(large[0])
        app.state.route.gate.set()
        assert ended(two, small).status == "completed"
        assert ended(one, large[1]).status == "completed"


def test_a_client_with_fewer_batches_comes_first(tmp_path: Path) -> None:
    app = batch_app(tmp_path, keys=["sk-1", "sk-2"])
    http = TestClient(app)
    one, two = client_of(http, "sk-1"), client_of(http, "sk-2")
    ids = [begin(one, line("a")) for _ in range(9)] + [begin(two, line("b"))]
    owner = app.state.batches.owner
    chosen = [stored.batch.id for stored in owner._in_turn(owner._pending())]
    assert chosen == [ids[0], ids[9], *ids[1:7]]


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


def test_a_lock_that_cannot_be_had_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = batch_app(tmp_path)
    lock = app.state.batches.owner._lock
    real, left = lock.acquire, [2]

    def fails(**options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOLCK, "No locks available")
        return real(**options)

    monkeypatch.setattr(lock, "acquire", fails)
    with serving(app) as client:
        assert ended(client, begin(client, line("a"))).status == "completed"
    assert "No locks available" in caplog.text


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


def test_pages_of_batches_and_their_bound(tmp_path: Path) -> None:
    app = batch_app(tmp_path, max_batches=3)
    client = client_of(TestClient(app))
    ids = [begin(client, line("a")) for _ in range(3)]
    assert [each.id for each in client.batches.list(limit=2)] == ids[::-1]
    with pytest.raises(openai.BadRequestError, match="--batch-max-batches"):
        begin(client, line("a"))
    results: Any = {"input_file_id": app.state.batches.files.of_client(None)[0].id}
    for field, value in [
        ("endpoint", "/v1/embeddings"), ("completion_window", "24"), ("completion_window", "0h"),
        ("completion_window", "31d"), ("metadata", {"k": "v" * 513}),
        ("output_expires_after", {"anchor": "created_at", "seconds": 5}), ("unknown", 1),
    ]:  # fmt: skip
        body = {"endpoint": CHAT, "completion_window": "24h", **results, field: value}
        answer = client._client.post("/v1/batches", json=body)
        assert answer.status_code == 400, field
        assert answer.json()["error"]["param"].startswith(field)


def test_results_are_kept_as_long_as_asked(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        kept: Any = {"anchor": "created_at", "seconds": 7200}
        batch = ended(client, begin(client, line("a"), output_expires_after=kept))
        made = client.files.retrieve(batch.output_file_id or "")
        assert made.expires_at == made.created_at + 7200
        # Results are no input.
        with pytest.raises(openai.BadRequestError, match="has the purpose 'batch_output'"):
            client.batches.create(input_file_id=made.id, endpoint=CHAT, completion_window="24h")


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


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_batch_may_end_while_it_is_validated(tmp_path: Path, how: str) -> None:
    app = batch_app(tmp_path)
    batch_id = begin(client_of(TestClient(app)), line("a"))
    service = app.state.batches

    async def test() -> None:
        run = runners.Run(service.store.load(batch_id), service.owner._parts)
        getattr(run, how)()
        # The first reason counts, but for the end of the server.
        run.cancel()
        await run.run()

    asyncio.run(test())
    status = service.store.load(batch_id).batch.status
    assert status == {"cancel": "cancelled", "stop": "validating"}[how]
    assert app.state.route.asked == []


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


def test_a_batch_that_has_just_ended_does_not_begin_again(tmp_path: Path) -> None:
    """It was read while it ran, and has ended before its turn came."""
    app = batch_app(tmp_path)
    client = client_of(TestClient(app))
    batch_id = begin(client, line("a"))
    service = app.state.batches
    before = service.store.load(batch_id)
    with serving(app) as client:
        batch = ended(client, batch_id)
        until(lambda: not service.owner._active)
    service.owner._pending = lambda: [before]
    asyncio.run(service.owner._look())
    assert not service.owner._active
    assert service.files.get(batch.output_file_id, None).bytes > 0
