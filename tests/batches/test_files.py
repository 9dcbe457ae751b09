"""Files: what may be uploaded, who sees it, and what is kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from tests.support.batches import CHAT, batch_app, client_of, jsonl, line, serving, upload

FORM = {"content-type": "multipart/form-data; boundary=b"}
HEAD = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
END = b"\r\n--b--\r\n"


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    content = jsonl(*(line(str(n), "x" * 5000) for n in range(1000)))
    with serving(batch_app(tmp_path)) as client:
        made = client.files.create(file=("in.jsonl", content), purpose="batch")
        assert made.model_dump() == {
            "id": made.id, "bytes": len(content), "created_at": made.created_at,
            "filename": "in.jsonl", "object": "file", "purpose": "batch", "status": "processed",
            "expires_at": made.created_at + 30 * 86_400, "status_details": None,
        }  # fmt: skip
        assert client.files.retrieve(made.id) == made
        assert client.files.content(made.id).content == content
        assert [each.id for each in client.files.list()] == [made.id]
        assert [each.id for each in client.files.list(purpose="batch_output")] == []
        assert client.files.delete(made.id).model_dump() == {
            "id": made.id, "deleted": True, "object": "file",
        }  # fmt: skip
        assert client.files.list().data == []
        for gone in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match="There is no file"):
                gone(made.id)
    assert [*tmp_path.rglob("file-*")] == []


def test_pages(tmp_path: Path) -> None:
    with serving(batch_app(tmp_path)) as client:
        ids = [upload(client, b"{}") for _ in range(5)]
        assert [each.id for each in client.files.list(limit=2)] == ids[::-1]
        assert [each.id for each in client.files.list(limit=2, order="asc")] == ids
        page = client.files.list(limit=3, after=ids[3])
        assert [each.id for each in page.data] == [ids[2], ids[1], ids[0]]
        assert page.has_more is False
        assert client.files.list(limit=2).has_more is True
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(after="../../etc/passwd")
        assert caught.value.param == "after"
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(limit=0)
        assert caught.value.param == "query.limit"


def test_a_client_may_choose_when_a_file_expires(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        kept: Any = {"anchor": "created_at", "seconds": 3600}
        made = client.files.create(file=b"{}", purpose="batch", expires_after=kept)
        assert made.expires_at == made.created_at + 3600
        kept["seconds"] = 60
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.create(file=b"{}", purpose="batch", expires_after=kept)
        assert caught.value.param == "expires_after.seconds"
        files = app.state.batches.files
        stored = files._load(made.id)
        stored.file.expires_at = int(time.time())
        files._described(made.id).write_text(stored.model_dump_json())
        assert client.files.list().data == []
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(made.id)
        files.expire()
        assert not files.path(made.id).exists()


@pytest.mark.parametrize("file_id", ["file-1", "..%2F..%2Fetc%2Fpasswd", "file-" + "g" * 32, "%00"])
@pytest.mark.parametrize("end", ["", "/content"])
def test_only_ids_are_looked_up(tmp_path: Path, file_id: str, end: str) -> None:
    (tmp_path / "files").mkdir(parents=True)
    (tmp_path / "files" / "file-1.json").write_text("{}")
    with TestClient(batch_app(tmp_path)) as http:
        assert http.get(f"/v1/files/{file_id}{end}").status_code == 404
        assert http.delete(f"/v1/files/{file_id}").status_code == 404
        assert http.get(f"/v1/batches/{file_id}").status_code == 404
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
        answer = http.post("/v1/batches", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "input_file_id")


def test_a_description_that_cannot_be_read_is_no_file(tmp_path: Path) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        one, other = upload(client, b"{}"), upload(client, b"{}")
        (tmp_path / "files" / f"{one}.json").write_text('{"owner"')
        assert [each.id for each in client.files.list()] == [other]
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(one)


def test_clients_see_their_own_only(tmp_path: Path) -> None:
    app = batch_app(tmp_path, keys=["sk-1", "sk-2"])
    with TestClient(app) as http:
        one, two, none = (client_of(http, key) for key in ("sk-1", "sk-2", "sk-3"))
        file_id = upload(one, jsonl(line("a")))
        batch = one.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        assert two.files.list().data == []
        assert two.batches.list().data == []
        for ask in (
            lambda: two.files.retrieve(file_id),
            lambda: two.files.content(file_id),
            lambda: two.files.delete(file_id),
            lambda: two.batches.retrieve(batch.id),
            lambda: two.batches.cancel(batch.id),
            lambda: two.batches.create(
                input_file_id=file_id, endpoint=CHAT, completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        with pytest.raises(openai.AuthenticationError):
            none.files.list()
        assert [each.id for each in one.batches.list()] == [batch.id]


def test_lines_are_asked_in_the_name_of_the_key(tmp_path: Path) -> None:
    """Neither its rate limit nor its rows count them."""
    edges = {"rate_limit": "2/hour", "max_concurrent_per_key": 1, "max_queue": 0}
    app = batch_app(tmp_path, keys=["sk-1"], edges=edges)
    with TestClient(app) as http:
        client = client_of(http, "sk-1")
        file_id = upload(client, jsonl(*(line(str(n)) for n in range(20))))
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")
        route = app.state.route
        while len(route.asked) < 20:
            time.sleep(0.01)
    assert len({*route.clients}) == 1
    assert route.clients[0].startswith("key-")


@pytest.mark.parametrize(
    ("settings", "data", "error", "message"),
    [
        ({"max_file_bytes": 10}, b"x" * 11, openai.APIStatusError, "--batch-max-file-bytes"),
        ({"max_files": 1}, b"x", openai.BadRequestError, "--batch-max-files"),
        ({"max_total_bytes": 1}, b"x", openai.BadRequestError, "--batch-max-total-bytes"),
    ],
)
def test_limits(
    tmp_path: Path, settings: dict[str, Any], data: bytes, error: Any, message: str
) -> None:
    app = batch_app(tmp_path)
    with serving(app) as client:
        upload(client, b"{}")
    with (
        serving(batch_app(tmp_path, **settings)) as client,
        pytest.raises(error, match=message) as caught,
    ):
        upload(client, data)
    assert caught.value.status_code == (413 if "max_file_bytes" in settings else 400)
    assert [*(tmp_path / "incoming").iterdir()] == []


def test_without_the_flag_the_routes_say_so() -> None:
    with TestClient(batch_app(None)) as http:
        for method, path in [
            ("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/files/file-1"),
            ("GET", "/v1/files/file-1/content"), ("DELETE", "/v1/files/file-1"),
            ("GET", "/v1/batches"), ("GET", "/v1/batches/b"), ("POST", "/v1/batches/b/cancel"),
        ]:  # fmt: skip
            answer = http.request(method, path)
            assert answer.status_code == 404, path
            assert "--batch-dir" in answer.json()["error"]["message"]
            assert answer.json()["error"]["code"] == "not_found"


def test_the_form_is_in_the_schema(tmp_path: Path) -> None:
    """The route reads it by itself, so FastAPI does not know it."""
    paths = TestClient(batch_app(tmp_path)).get("/openapi.json").json()["paths"]
    form = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file", "purpose"]
    with serving(batch_app(tmp_path)) as client:
        made = client.files.create(
            file=("in.jsonl", b"{}"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
    assert made.expires_at == made.created_at + 3600
    anchor = form["properties"]["expires_after[anchor]"]
    assert anchor["enum"] == ["created_at"]
