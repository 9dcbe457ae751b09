"""The playground's route: its files, their headers, keys, prefixes, the flag, the wheel."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from divserve import playground
from tests.support.edges import Call, small_app
from tests.support.fake_client import FakeClient, arguments
from tests.support.fake_playground import described
from tests.support.models import ROOT

FILES = sorted(path.name for path in playground.STATIC.iterdir())


def served(keys: tuple[str, ...] = (), **flags: Any) -> FastAPI:
    app = small_app(keys, **flags)
    playground.install(app)
    return app


@pytest.fixture(scope="module")
def http() -> TestClient:
    return TestClient(served())


def test_the_page_and_its_files(http: TestClient) -> None:
    page = http.get("/playground")
    assert page.history[0].headers["location"] == "playground/"
    assert page.text == (playground.STATIC / "index.html").read_text()
    assert page.headers["content-type"].startswith("text/html")
    for name in FILES:
        file = http.get(f"/playground/{name}")
        assert file.content == (playground.STATIC / name).read_bytes()
        if name.endswith(".js"):
            assert "javascript" in file.headers["content-type"]


def test_a_proxy_may_add_a_prefix() -> None:
    """Whether the server knows the prefix or not."""
    known = TestClient(served(), root_path="/api")
    page = known.get("/api/playground", follow_redirects=False)
    assert page.headers["location"] == "playground/"
    assert known.get("/api/playground/app.js").status_code == 200
    page_text = (playground.STATIC / "index.html").read_text()
    addresses = re.findall(r'(?:href|src)="([^"]+)"', page_text)
    assert addresses
    assert not any(address.startswith("/") for address in addresses)


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/playground/app.js"])
def test_headers(http: TestClient, path: str) -> None:
    headers = http.get(path, follow_redirects=False).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-cache"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_files_are_sent_once(http: TestClient) -> None:
    first = http.get("/playground/app.js")
    again = http.get("/playground/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"]
    head = http.head("/playground/app.js")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", ["/playground/nothing.js", "/playground/../pyproject.toml"])
def test_what_is_not_there(path: str) -> None:
    async def status() -> int:
        return await Call(served(), path, method="GET").ended()

    assert asyncio.run(status()) == 404


def test_files_need_no_key_and_nothing_else_goes_without() -> None:
    async def test() -> None:
        app = served(("sk-1",))
        for method, path, status in (
            ("GET", "/playground", 307),
            ("HEAD", "/playground/", 200),
            ("GET", "/playground/app.js", 200),
            ("GET", "/playground/../v1/models", 404),
            ("POST", "/playground/", 401),
            ("GET", "/playgrounds", 401),
            ("GET", "/v1/models", 401),
        ):
            assert await Call(app, path, method=method).ended() == status, (method, path)
        call = Call(app, "/api/playground/app.js", method="GET", root_path="/api")
        assert await call.ended() == 200

    asyncio.run(test())


def test_without_the_playground_its_path_needs_a_key_as_any_other() -> None:
    app = small_app(["sk-1"], no_playground=True)
    assert TestClient(app).get("/playground/").status_code == 401


def test_the_flag(fake_engine: FakeClient, app: Any) -> None:
    from divserve.server import build_app

    assert TestClient(app).get("/playground/").status_code == 200
    without = asyncio.run(build_app(fake_engine, arguments(no_playground=True)))  # type: ignore[arg-type]
    assert TestClient(without).get("/playground/").status_code == 404


def test_the_pages_tests_have_the_real_methods(app: Any) -> None:
    """The scripted API of tests/playground describes methods as the real one does."""
    from divserve.decoding import METHODS

    listed = TestClient(app).get("/v1/decoding/methods").json()["data"]
    there = app.state.extras
    assert listed == [described(name, method, there) for name, method in METHODS.items()]


def test_no_file_asks_another_host() -> None:
    for path in playground.STATIC.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        hosts = re.findall(r"https?://[^\s\"'`]*|//cdn[^\s\"']*", text)
        assert hosts in ([], ["http://host/v1"]), path.name


def test_the_page_has_no_inline_code() -> None:
    page = (playground.STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)
    for path in playground.STATIC.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(",
                             path.read_text()), path.name  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    assert len((playground.STATIC / name).read_text().splitlines()) <= 250


def test_the_wheel_has_the_files() -> None:
    from hatchling.builders.wheel import WheelBuilder

    inside = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"divserve/playground/static/{name}" for name in FILES} <= inside
    assert Path("divserve/playground/__init__.py").as_posix() in inside
