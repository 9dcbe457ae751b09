"""The lines under way: rows, clients that come first, answers that say to wait, priority."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve import metrics
from divserve.batches import answering, call
from tests.support.batches import (
    CHAT,
    batch_app,
    begin,
    client_of,
    ended,
    line,
    lines_of,
    serving,
    until,
)  # fmt: skip


def counted(outcome: str) -> float:
    value: float = metrics.BATCH_LINES.labels(outcome)._value.get()
    return value


def test_rows_stay_within_the_limit(tmp_path: Path) -> None:
    """Also those of lines that only turn out to need many."""
    app = batch_app(tmp_path, rows=8, max_rows=4)
    lines = [line(str(n), f"rows {n % 3 + 1} {n}") for n in range(40)]
    with serving(app) as client:
        before = counted("ok")
        batch = ended(client, begin(client, *lines, line("large", "rows 6")))
        assert len(lines_of(client, batch.output_file_id)) == 41
        assert counted("ok") == before + 41
        assert metrics.BATCHES.labels("completed")._value.get() == 1
    assert app.state.route.most in (4, 6)


def test_interactive_clients_get_no_429(tmp_path: Path) -> None:
    """The queue has room for none but the engine's rows, of which a batch has half."""
    app = batch_app(tmp_path, rows=4, edges={"max_queue": 0})
    body = line("x", "now")["body"]
    with TestClient(app) as http:
        client = client_of(http)
        batch_id = begin(client, *(line(str(n), f"wait {n}") for n in range(10)))
        until(lambda: app.state.route.waiting == 2)
        for _ in range(20):
            assert http.post(CHAT, json=body).status_code == 200
        app.state.route.gate.set()
        assert ended(client, batch_id).status == "completed"


def test_lines_wait_for_interactive_clients(tmp_path: Path) -> None:
    app = batch_app(tmp_path, rows=2)
    with TestClient(app) as http:
        body = line("x", "wait for it")["body"]
        threads = [
            threading.Thread(target=http.post, args=(CHAT,), kwargs={"json": body})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: app.state.route.waiting == 2)
        client = client_of(http)
        batch_id = begin(client, line("a"))
        until(lambda: client.batches.retrieve(batch_id).status == "in_progress")
        time.sleep(0.2)
        assert "a" not in app.state.route.asked
        # It can be cancelled while it waits.
        assert client.batches.cancel(begin(client, line("b"))).status == "cancelling"
        app.state.route.gate.set()
        for thread in threads:
            thread.join()
        assert ended(client, batch_id).status == "completed"


def test_a_busy_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "FIRST_WAIT_S", 0.01)
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch = ended(client, begin(client, line("a", "busy a"), line("b", "busy b")))
        assert len(lines_of(client, batch.output_file_id)) == 2
    assert len(app.state.route.asked) == 4


def test_a_part_that_stays_down_fails_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "FIRST_WAIT_S", 0.001)
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch = ended(client, begin(client, line("a", "down"), line("b")))
        (error,) = lines_of(client, batch.error_file_id)
        assert error["response"]["status_code"] == 503
        assert len(lines_of(client, batch.output_file_id)) == 1
    assert app.state.route.asked.count("down") == answering.TRIES


@pytest.mark.parametrize("said", ["busy", "down"])
def test_a_batch_can_be_cancelled_while_a_line_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(answering, "FIRST_WAIT_S", 20.0)
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("a", said))
        until(lambda: len(app.state.route.asked) == 1)
        time.sleep(0.1)
        client.batches.cancel(batch_id)
        batch = ended(client, batch_id)
        assert (batch.status, batch.error_file_id) == ("cancelled", None)


def test_a_line_that_needs_more_room_can_be_cancelled(tmp_path: Path) -> None:
    app = batch_app(tmp_path, rows=8, max_rows=4)
    with serving(app) as client:
        batch_id = begin(client, line("a", "wait"), line("b", "rows 4"))
        until(lambda: len(app.state.route.asked) == 2)
        time.sleep(0.1)
        client.batches.cancel(batch_id)
        assert ended(client, batch_id).status == "cancelled"


@pytest.mark.parametrize(
    ("policy", "given", "sent"),
    [("fcfs", None, None), ("priority", None, 1), ("priority", -5, 1), ("priority", 9, 9)],
)
def test_lines_are_behind_where_there_are_priorities(
    tmp_path: Path, policy: str, given: Any, sent: Any
) -> None:
    app = batch_app(tmp_path, policy=policy)
    more = {} if given is None else {"priority": given}
    with serving(app) as client:
        ended(client, begin(client, line("a", **more)))
    assert app.state.route.bodies[0].get("priority") == sent


def test_half_characters_are_the_lines_error(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        batch = ended(client, begin(client, line("\ud83d", "a \ud83d b"), line("é", "ü\u2028")))
        (error,) = lines_of(client, batch.error_file_id)
        assert error["custom_id"] == "\ud83d"
        assert "surrogate" in error["response"]["body"]["error"]["message"]
        (answer,) = lines_of(client, batch.output_file_id)
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == "re: ü\u2028"


def test_a_body_that_is_too_large_is_the_lines_error(tmp_path: Path) -> None:
    app = batch_app(tmp_path, edges={"max_body_bytes": 500})
    with serving(app) as client:
        batch = ended(client, begin(client, line("a", "x" * 1000), line("b")))
        (error,) = lines_of(client, batch.error_file_id)
        assert error["response"]["status_code"] == 413
        assert batch.status == "completed"


def test_a_request_that_does_not_end_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call, "LEAVE_S", 0.05)

    async def test() -> None:
        async def deaf(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

        left = asyncio.Event()
        calling = call.Caller(deaf, by_priority=False).call(CHAT, b"{}", None, print, left)
        asyncio.get_running_loop().call_later(0.05, left.set)
        assert await calling is None

    asyncio.run(test())


def test_what_an_application_raises_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async def broken(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("a bug")

        caller = call.Caller(broken, by_priority=False)
        answer = await caller.call(CHAT, b"{}", None, print, asyncio.Event())
        assert answer is not None
        assert answer.status == 500
        assert b"a bug" not in answer.body

    asyncio.run(test())
    assert "a bug" in caplog.text
