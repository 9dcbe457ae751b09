"""The process that runs the batches: restarts, the lock, drains and other processes."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from divserve.batches import owner as owners
from divserve.batches import runner as runners
from tests.support.batches import (
    CHAT,
    batch_app,
    begin,
    client_of,
    ended,
    line,
    serving,
    until,
)  # fmt: skip


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
