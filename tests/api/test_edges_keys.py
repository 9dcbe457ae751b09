"""Authentication: keys from flags and files, and the routes that require none."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.edges import keys
from divserve.edges.keys import KeyRing, read_keys
from divserve.errors import StartupError
from tests.support.edges import Call, small_app

FILE = """
# the team
alice:sk-alice   # her laptop
sk-plain
bob.2: with:colon
"""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(FILE)
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request checks the file."""
    monkeypatch.setattr(keys, "CHECK_EVERY_S", 0.0)


def test_a_file_of_keys(file: Path) -> None:
    ring = KeyRing(["sk-flag"], file)
    assert ring.name_of(b"sk-alice") == "alice"
    assert ring.name_of(b"with:colon") == "bob.2"
    assert ring.name_of(b"sk-plain") == f"key-{hashlib.sha256(b'sk-plain').hexdigest()[:12]}"
    assert ring.name_of(b"sk-flag") == f"key-{hashlib.sha256(b'sk-flag').hexdigest()[:12]}"
    for stranger in (b"", b"alice", b"sk-alice ", b"# the team", b"\xff"):
        assert ring.name_of(stranger) is None


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice:sk-alice\nsk-plain\n", encoding="utf-8-sig")
    ring = KeyRing(file=path)
    assert ring.name_of(b"sk-alice") == "alice"
    path.write_text("sk-first\n", encoding="utf-8-sig")
    assert KeyRing(file=path).name_of(b"sk-first") is not None


def test_keys_are_not_kept(file: Path) -> None:
    assert "sk-alice" not in repr(read_keys(file))
    assert "sk-plain" not in repr(vars(KeyRing(["sk-plain"], file)))


@pytest.mark.parametrize("line", ["a b:key", ":key", "name:", "two words", "x" * 65 + ":key"])
def test_a_line_that_is_no_key_is_named_by_number_only(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"good\n{line}\n")
    with pytest.raises(StartupError, match="line 2 is neither KEY nor NAME:KEY") as refused:
        KeyRing(file=path)
    assert line not in str(refused.value)


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_server_does_not_start_with_a_file_without_keys(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StartupError, match="--api-key-file"):
        KeyRing(file=path)


@pytest.mark.usefixtures("impatient")
def test_the_file_is_read_again_when_it_changes(file: Path) -> None:
    ring = KeyRing(file=file)
    file.write_text("alice:sk-new\n")
    assert ring.name_of(b"sk-new") == "alice"
    assert ring.name_of(b"sk-alice") is None


@pytest.mark.usefixtures("impatient")
def test_a_file_that_cannot_be_read_again_leaves_the_old_keys(file: Path) -> None:
    ring = KeyRing(file=file)
    file.write_text("not a key\n")
    assert ring.name_of(b"sk-alice") == "alice"
    file.unlink()
    assert ring.name_of(b"sk-alice") == "alice"
    ring.reload()
    assert ring.name_of(b"sk-alice") == "alice"


@pytest.mark.usefixtures("impatient")
def test_a_file_that_loses_its_last_key_opens_to_nobody(file: Path) -> None:
    ring = KeyRing(file=file)
    file.write_text("")
    assert ring.name_of(b"sk-alice") is None
    assert ring


def test_the_file_is_looked_at_twice_a_second_at_most(file: Path) -> None:
    ring = KeyRing(file=file)
    assert ring.name_of(b"sk-alice") == "alice"
    file.write_text("sk-new\n")
    assert ring.name_of(b"sk-new") is None
    ring.reload()
    assert ring.name_of(b"sk-new") is not None
    KeyRing(["x"]).reload()


@pytest.mark.usefixtures("impatient")
def test_the_log_tells_of_every_reading_but_of_no_key(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "logger", logging.getLogger("of the test"))
    caplog.set_level("INFO")
    ring = KeyRing(file=file)
    file.write_text("sk-one\nsk-two\n")
    ring.reload()
    ring.name_of(b"sk-one")
    file.write_text("not a key\n")
    ring.name_of(b"sk-one")
    ring.name_of(b"sk-one")
    file.unlink()
    ring.reload()
    unread = "--api-key-file is not read again, old keys stay: "
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "--api-key-file: 2 keys"),
        ("ERROR", f"{unread}line 1 is neither KEY nor NAME:KEY"),
        ("ERROR", f"{unread}No such file or directory"),
    ]


@pytest.fixture(scope="module")
def guarded() -> TestClient:
    return TestClient(small_app(["sk-1", "sk-ü"]))


def test_what_is_told_without_a_key_and_with_a_wrong_one(guarded: TestClient) -> None:
    def told(headers: dict[str, str]) -> str:
        message: str = guarded.get("/v1/models", headers=headers).json()["error"]["message"]
        return message

    missing = "No API key: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    assert told({}) == told(bearer("")) == told({"Authorization": "Basic sk-1"}) == missing
    assert told(bearer("sk-2")) == "The API key is wrong, or has been revoked."


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/docs", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "sk-1"}, {"Authorization": "Basic sk-1"}, bearer("sk-2"), bearer("")],
    ids=["none", "bare", "basic", "wrong", "empty"],
)
def test_every_route_needs_a_key(guarded: TestClient, path: str, headers: dict[str, str]) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = guarded.request(method, path, headers=headers)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]


def test_a_key_opens_it(guarded: TestClient) -> None:
    for value in ("Bearer sk-1", "bearer sk-1", "BEARER  sk-1 "):
        assert guarded.get("/v1/models", headers={"Authorization": value}).status_code == 200
    utf8: Any = {"Authorization": "Bearer sk-ü".encode()}
    assert guarded.get("/v1/models", headers=utf8).status_code == 200


@pytest.mark.parametrize("name", ["Authorization", "x-api-key"])
def test_two_keys_are_none(guarded: TestClient, name: str) -> None:
    value = "Bearer sk-1" if name == "Authorization" else "sk-1"
    answer = guarded.get("/v1/models", headers=[(name, value)] * 2)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "2 headers with an API key: send one."


def test_the_header_of_anthropics_client(guarded: TestClient) -> None:
    """It counts on every route; beside `Authorization` it has to be the same key."""

    def status(**headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return guarded.get("/v1/models", headers=sent).status_code

    assert status(x_api_key="sk-1") == status(x_api_key=" sk-1 ") == 200
    assert (
        status(x_api_key="sk-2") == status(x_api_key="") == status(x_api_key="Bearer sk-1") == 401
    )
    assert status(x_api_key=" sk-1", authorization="Bearer sk-1") == 200
    assert status(x_api_key="sk-2", authorization="Bearer sk-1") == 401
    assert status(x_api_key="sk-1", authorization="Bearer sk-2") == 401
    assert status(x_api_key="sk-2", authorization="Bearer sk-2") == 401
    assert status(x_api_key="sk-1", authorization="Basic sk-1") == 401


@pytest.mark.parametrize("path", ["/health", "/live", "/ready", "/ping"])
def test_probes_need_none(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200
    assert guarded.get(f"{path}x").status_code == 401
    assert guarded.get(f"/x/..{path}").status_code in (200, 401)


def test_metrics_may_be_opened() -> None:
    http = TestClient(small_app(["sk-1"], metrics_without_key=True))
    assert http.get("/metrics").status_code == 200
    assert http.get("/metricsx").status_code == 401
    assert http.get("/v1/models").status_code == 401


def test_without_keys_the_server_is_open() -> None:
    http = TestClient(small_app())
    assert http.get("/v1/models").status_code == 200
    assert http.get("/v1/models", headers=bearer("anything")).status_code == 200


def test_a_stranger_is_refused_before_a_byte_is_read() -> None:
    async def ask() -> Call:
        call = Call(small_app(["sk-1"]), "/echo", b"x" * 100)
        assert await call.ended() == 401
        return call

    assert asyncio.run(ask()).read == 0


def test_a_websocket_needs_a_key_too() -> None:
    async def close(headers: list[Any]) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        scope = {"type": "websocket", "path": "/health", "headers": headers, "state": {}}
        await small_app(["sk-1"])({**scope, "root_path": "", "query_string": b""}, receive, send)
        return sent

    assert asyncio.run(close([])) == [{"type": "websocket.close", "code": 1008}]
    inside = asyncio.run(close([(b"authorization", b"Bearer sk-1")]))
    assert inside[0]["code"] != 1008


def test_vllms_keys_open_the_real_app(
    fake_engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--api-key, VLLM_API_KEY and the file; vLLM's own check is removed."""
    from divserve.server import build_app
    from tests.support.fake_client import arguments

    path = tmp_path / "keys"
    path.write_text("team:sk-file")
    monkeypatch.setenv("VLLM_API_KEY", "sk-environment")
    args = arguments(api_key_file=path)
    http = TestClient(asyncio.run(build_app(fake_engine, args)))
    for key, status in {"sk-environment": 200, "sk-file": 200, "sk-flag": 401}.items():
        assert http.get("/v1/models", headers=bearer(key)).status_code == status
    args.api_key = ["sk-flag"]
    http = TestClient(asyncio.run(build_app(fake_engine, args)))
    for key, status in {"sk-environment": 401, "sk-file": 200, "sk-flag": 200}.items():
        assert http.get("/v1/models", headers=bearer(key)).status_code == status
    for route in ("/tokenize", "/load", "/version", "/metrics", "/invocations", "/openapi.json"):
        assert http.get(route).status_code == 401
    assert os.environ["VLLM_API_KEY"] == "sk-environment"
