"""Uploads: forms of all kinds, in any pieces, slow, too many, or cut off."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from divserve.batches import folder as folders
from divserve.batches import routes
from divserve.batches import upload as uploads
from tests.support.batches import batch_app, serving, upload
from tests.support.edges import Call

FORM = {"content-type": "multipart/form-data; boundary=b"}
HEAD = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
END = b"\r\n--b--\r\n"


def test_the_room_is_checked_again_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PIECE", 100)
    monkeypatch.setattr(uploads, "CHECK_EVERY", 1000)
    app = batch_app(tmp_path, max_total_bytes=5000)
    with serving(app) as client:
        with pytest.raises(openai.BadRequestError, match="--batch-max-total-bytes"):
            upload(client, b"x" * 400_000)
        upload(client, b"x" * 4000)


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "insufficient_storage"), (errno.EIO, 500, "internal_error")],
)
def test_a_full_disk_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int, code: str
) -> None:
    def fails(file: Any, pieces: Any) -> None:
        with folders.storing():
            raise OSError(number, "the disk")

    monkeypatch.setattr(uploads, "_write", fails)
    with TestClient(batch_app(tmp_path), raise_server_exceptions=False) as http:
        answer = http.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert [*(tmp_path / "incoming").iterdir()] == []


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (HEAD + END[2:], "file", "field required"),
        (FILE + b"x" + END, "purpose", "must be 'batch', not 'None'"),
        (HEAD.replace(b"batch", b"evals") + FILE + b"x" + END, "purpose", "not 'evals'"),
        (HEAD + FILE + b"x\r\n" + FILE + b"x" + END, "file", "send one"),
        (HEAD.replace(b"batch", b"b" * 2000) + END[2:], "purpose", "too long"),
        (HEAD * 9 + END[2:], None, "more than 8 parts"),
        (HEAD + FILE + b"x", None, "ends early"),
        (b"--c\r\n", None, "not a valid form"),
    ],
)
def test_forms_that_are_none(tmp_path: Path, body: bytes, param: str | None, message: str) -> None:
    with TestClient(batch_app(tmp_path)) as http:
        answer = http.post("/v1/files", content=body, headers=FORM)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == param
        assert http.get("/v1/files").json()["data"] == []
    assert [*(tmp_path / "incoming").iterdir()] == []


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415), ("multipart/form-data", 415), ("text/plain", 415),
        (f"multipart/form-data; boundary={'b' * 300}", 400),
    ],
)  # fmt: skip
def test_bodies_of_other_kinds(tmp_path: Path, kind: str, status: int) -> None:
    with TestClient(batch_app(tmp_path)) as http:
        answer = http.post("/v1/files", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == status


def test_any_pieces_make_the_same_file(tmp_path: Path) -> None:
    """The order of the parts and where the body is cut make no difference."""
    body = FILE + b"--b almost\r\n--\r\n" + b"\r\n" + HEAD + END[2:]

    async def test() -> None:
        app = batch_app(tmp_path)
        pieces = [body[n : n + 1] for n in range(len(body))]
        assert await Call(app, "/v1/files", *pieces, headers=FORM).ended() == 200
        (content,) = (tmp_path / "files").glob("*.jsonl")
        assert content.read_bytes() == b"--b almost\r\n--\r\n"

    asyncio.run(test())


def test_an_upload_has_a_time_for_each_piece(tmp_path: Path) -> None:
    async def test() -> None:
        app = batch_app(tmp_path, edges={"body_timeout": 0.05})
        call = Call(app, "/v1/files", HEAD + FILE, headers=FORM, stalls=True)
        assert await call.ended() == 408
        assert b"--body-timeout" in call.body
        assert call.headers["connection"] == "close"

    asyncio.run(test())


def test_uploads_at_the_same_time_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MOST_UPLOADS", 1)

    async def test() -> None:
        app = batch_app(tmp_path, edges={"max_queue": 0}, rows=1)
        slow = Call(app, "/v1/files", HEAD + FILE, headers=FORM, stalls=True)
        while not [*(tmp_path / "incoming").iterdir()]:
            await asyncio.sleep(0.01)
        refused = Call(app, "/v1/files", HEAD + FILE + b"x" + END, headers=FORM)
        assert await refused.ended() == 429
        assert refused.headers["retry-after"] == "1"
        assert b'"code":"queue_full"' in refused.body
        slow.leave()
        assert await slow.ended() == 400
        assert await Call(app, "/v1/files", HEAD + FILE + b"x" + END, headers=FORM).ended() == 200

    asyncio.run(test())


def test_an_upload_whose_client_leaves_is_not_kept(tmp_path: Path) -> None:
    async def test() -> None:
        app = batch_app(tmp_path)
        call = Call(app, "/v1/files", HEAD + FILE + b"x" * 100, headers=FORM, leaves=True)
        await call.ended()
        assert [*(tmp_path / "incoming").iterdir()] == []
        assert [*(tmp_path / "files").iterdir()] == []

    asyncio.run(test())


def test_names_are_shown_without_folders(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        for name, shown in {
            "../../a.jsonl": "a.jsonl", "C:\\b.jsonl": "b.jsonl", "/": "upload.jsonl",
            "n" * 400: "n" * 255,
        }.items():  # fmt: skip
            made = client.files.create(file=(name, b"{}"), purpose="batch")
            assert made.filename == shown
