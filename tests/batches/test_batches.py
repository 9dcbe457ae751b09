"""Batches from the upload to the results, as the openai client sees them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

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


def test_every_line_is_answered_once(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    lines = [line(f"line {n}") for n in range(150)]
    with serving(app) as client:
        batch_id = begin(client, *lines, metadata={"run": "7"})
        batch = ended(client, batch_id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 150, "completed": 150, "failed": 0}
        assert batch.metadata == {"run": "7"}
        assert batch.model == "smol"
        assert batch.endpoint == CHAT
        assert batch.error_file_id is None
        times = [
            batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at,
        ]  # fmt: skip
        assert times == sorted(times, key=lambda at: at or 0)
        assert batch.expires_at == batch.created_at + 86_400
        output = lines_of(client, batch.output_file_id)
        assert sorted(each["custom_id"] for each in output) == sorted(
            f"line {n}" for n in range(150)
        )
        one = output[0]
        assert one.keys() == {"id", "custom_id", "response", "error"}
        assert one["id"].startswith("batch_req_")
        assert one["error"] is None
        assert one["response"].keys() == {"status_code", "request_id", "body"}
        assert one["response"]["status_code"] == 200
        answer = one["response"]["body"]["choices"][0]["message"]["content"]
        assert answer == f"re: {one['custom_id']}"
        made = client.files.retrieve(batch.output_file_id or "")
        assert made.filename == f"{batch_id}_output.jsonl"
        assert made.purpose == "batch_output"
        assert made.bytes == len(client.files.content(made.id).content)
        kept = tmp_path / "batches" / batch_id
        until(lambda: [*kept.iterdir()] == [kept / "batch.json"])
    assert sorted(app.state.route.asked) == sorted(f"line {n}" for n in range(150))


def test_lines_that_fail_are_in_the_error_file(tmp_path: Path) -> None:
    lines = [line("good"), line("wrong", "bad"), line("bug", "break"), line("s", stream=True)]
    with serving(batch_app(tmp_path)) as client:
        batch = ended(client, begin(client, *lines))
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 4, "completed": 1, "failed": 3}
        assert [each["custom_id"] for each in lines_of(client, batch.output_file_id)] == ["good"]
        errors = {each["custom_id"]: each for each in lines_of(client, batch.error_file_id)}
        assert {name: each["response"]["status_code"] for name, each in errors.items()} == {
            "wrong": 400, "bug": 500, "s": 400,
        }  # fmt: skip
        assert errors["wrong"]["response"]["body"]["error"]["message"] == "bad"
        assert errors["s"]["response"]["body"]["error"]["param"] == "stream"
        assert "a bug" not in str(errors["bug"])


def test_bad_lines_fail_the_batch_before_anything_runs(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    bad: list[Any] = [line("a"), line("a"), {**line("b"), "url": "/v1/completions"}, [1]]
    with serving(app) as client:
        batch = ended(client, begin(client, *bad))
        assert batch.status == "failed"
        assert batch.failed_at is not None
        assert batch.errors is not None
        assert batch.errors.object == "list"
        assert [(each.code, each.line) for each in batch.errors.data or ()] == [
            ("duplicate_custom_id", 2), ("mismatched_url", 3), ("invalid_json_line", 4),
        ]  # fmt: skip
        empty = client.batches.create(
            input_file_id=upload(client, b"\n"), endpoint=CHAT, completion_window="24h"
        )
        batch = ended(client, empty.id)
        assert [each.code for each in (batch.errors and batch.errors.data) or ()] == ["empty_file"]
    assert app.state.route.asked == []


def test_several_models_may_be_mixed(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        lines = [line("a"), line("b", model="smol@cad"), line("c", model="third")]
        batch = ended(client, begin(client, *lines))
        assert (batch.status, batch.model) == ("completed", None)
        batch = ended(client, begin(client, line("a", model=7)))
        assert (batch.status, batch.model) == ("completed", None)


def test_progress_is_seen_while_it_runs(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("first"), line("second", "wait"))

        def completed() -> bool:
            counts = client.batches.retrieve(batch_id).request_counts
            return counts is not None and (counts.total, counts.completed) == (2, 1)

        until(completed, "the first answer")
        assert client.batches.retrieve(batch_id).status == "in_progress"
        app.state.route.gate.set()
        assert ended(client, batch_id).status == "completed"


def test_cancel_keeps_what_is_finished(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("first"), *(line(f"w{n}", f"wait {n}") for n in range(20)))
        until(lambda: app.state.route.waiting == 2)
        asked = client.batches.cancel(batch_id)
        assert asked.status == "cancelling"
        assert asked.cancelling_at is not None
        batch = ended(client, batch_id)
        assert batch.status == "cancelled"
        assert batch.cancelled_at is not None
        assert batch.finalizing_at is None
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 21, "completed": 1, "failed": 0}
        assert [each["custom_id"] for each in lines_of(client, batch.output_file_id)] == ["first"]
        # Twice changes nothing.
        assert client.batches.cancel(batch_id) == batch
    assert app.state.route.running == 0
    assert app.state.route.aborted == 2


def test_what_has_ended_cannot_be_cancelled(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        batch_id = begin(client, line("a"))
        ended(client, batch_id)
        with pytest.raises(openai.BadRequestError, match="is completed: it cannot be cancelled"):
            client.batches.cancel(batch_id)


def test_cancelling_as_it_ends_never_hangs(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        for pause in (0, 0.005, 0.01, 0.02, 0.03, 0.05):
            batch_id = begin(client, line("a"), line("b"))
            time.sleep(pause)
            try:
                client.batches.cancel(batch_id)
            except openai.BadRequestError:
                assert client.batches.retrieve(batch_id).status in ("finalizing", "completed")
            batch = ended(client, batch_id)
            assert batch.request_counts is not None
            done = len(lines_of(client, batch.output_file_id))
            assert done == batch.request_counts.completed
            assert batch.status == ("completed" if done == 2 else "cancelled")


def test_an_expired_batch_tells_of_its_lines(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        batch_id = begin(client, line("a"), line("b", "wait"), line("c", "wait"))
        until(lambda: app.state.route.waiting == 2)
        stored = app.state.batches.store.load(batch_id)
    # As if it had been stopped for longer than the window.
    stored.batch.expires_at = int(time.time())
    app.state.batches.store.save(stored)
    again = batch_app(tmp_path)
    with serving(again) as client:
        batch = ended(client, batch_id)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 3, "completed": 1, "failed": 2}
        errors = lines_of(client, batch.error_file_id)
        assert {each["custom_id"] for each in errors} == {"b", "c"}
        assert {each["error"]["code"] for each in errors} == {"batch_expired"}
        assert {each["response"] for each in errors} == {None}


def test_a_batch_expires_while_it_runs(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with TestClient(app) as http:
        client = client_of(http)
        batch_id = begin(client, line("a", "wait"))
        until(lambda: app.state.route.waiting == 1)
        run, _ = app.state.batches.owner._active[batch_id]
        run._halt("expired")
        assert ended(client, batch_id).status == "expired"
    assert app.state.route.aborted == 1


def test_the_input_file_may_be_deleted_at_once(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        file_id = upload(client, jsonl(*(line(str(n)) for n in range(20))))
        batch = client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert client.files.delete(file_id).deleted
        assert ended(client, batch.id).status == "completed"
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file_id)


def test_an_answer_in_plain_text_is_kept_as_text(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        batch = ended(client, begin(client, line("a", "text")))
        (answer,) = lines_of(client, batch.output_file_id)
        assert answer["response"]["body"] == "no JSON"
