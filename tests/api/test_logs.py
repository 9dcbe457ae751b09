"""The log line of each request: its fields, what it never contains, and where it is written."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from divserve.api import instrumentation
from divserve.api.record import Record
from divserve.api.report import ChoiceReport
from divserve.api.request_log import fields, request_log
from divserve.api.texts import undecoded
from divserve.decoding import METHODS, Stack
from divserve.errors import DecodingFailed
from divserve.http import log_text
from divserve.http.scope import KEY_NAME
from divserve.startup import log_format
from tests.support.chat import DOCUMENT, MESSAGES, PROMPT, guided
from tests.support.edges import small_app
from tests.support.fake_client import FakeClient, arguments
from tests.support.models import ROOT

# vLLM reads its own deprecated field.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "smol", "messages": MESSAGES},
    TEXT: {"model": "smol", "prompt": PROMPT},
}


class Server:
    """An app that writes its lines into memory."""

    def __init__(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs

        from divserve.server import build_app

        args = arguments()
        self.engine = FakeClient(AsyncEngineArgs.from_cli_args(args).create_engine_config())
        self.app = asyncio.run(build_app(self.engine, args))  # type: ignore[arg-type]
        self.written = io.StringIO()
        self.app.user_middleware[0].kwargs["sinks"] = [request_log("json", self.written)]
        self.http = TestClient(self.app, raise_server_exceptions=False)

    def lines(self) -> list[dict[str, Any]]:
        """What has been written since the last call."""
        text = self.written.getvalue()
        self.written.seek(0)
        self.written.truncate()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def shared() -> Server:
    return Server()


@pytest.fixture
def server(shared: Server) -> Server:
    """The server; the engine's script and the log are reset."""
    shared.engine.fail_at, shared.app.state.log_prompts = None, False
    shared.lines()
    return shared


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_one_line_has_it_all(server: Server, path: str, stream: bool) -> None:
    body = {**BODIES[path], "decoding": guided("adacad"), "stream": stream, "n": 2}
    headers = {"x-request-id": "r-17"}
    assert server.http.post(path, json=body, headers=headers).status_code == 200
    (line,) = server.lines()
    known = {
        "event": "request",
        "level": "info",
        "request_id": "r-17",
        "key": None,
        "route": path,
        "http_method": "POST",
        "status": 200,
        "outcome": "ok",
        "model": "smol",
        "method": "adacad",
        "stream": stream,
        "completion_tokens": 2 * len(server.engine.answer),
        "applied_steps": 2 * len(server.engine.answer),
        "finish_reason": "length",
        "mean": {"entropy": 1.0, "kl": 0.5, "jsd": 0.25, "alpha": 0.75},
        "error_type": None,
        "error_code": None,
        "pid": os.getpid(),
    }
    assert {name: line[name] for name in known} == known
    assert line["prompt_tokens"] > line["guide_tokens"] > 0
    assert (line["ttft_ms"] is not None) == stream, "the fake engine keeps no statistics"
    assert 0 < (line["ttft_ms"] or 0.1) <= line["duration_ms"]
    assert line["timestamp"].endswith("Z")
    assert "prompt" not in line


def test_a_plain_request_and_another_route(server: Server) -> None:
    server.http.post(TEXT, json={**BODIES[TEXT], "stream": True})
    server.http.get("/v1/models")
    plain, models = server.lines()
    assert (plain["method"], plain["applied_steps"], plain["mean"]) == ("plain", None, None)
    assert plain["completion_tokens"] == len(server.engine.answer)
    assert re.fullmatch("[0-9a-f]{32}", plain["request_id"])
    assert (models["route"], models["method"], models["model"]) == ("/v1/models", None, None)
    assert (models["stream"], models["completion_tokens"]) == (None, None)


def test_probes_are_silent_unless_they_fail(server: Server) -> None:
    server.http.get("/health")
    server.http.get("/metrics")
    assert server.lines() == []
    server.engine.engines = {"large": False, "small": True}
    try:
        server.http.get("/health")
    finally:
        server.engine.engines = {"large": True, "small": True}
    (line,) = server.lines()
    assert (line["level"], line["status"]) == ("error", 503)


@pytest.mark.parametrize("stream", [False, True])
def test_failures_say_which_but_quote_nothing(server: Server, stream: bool) -> None:
    secret = "my secret document"
    server.engine.fail_at = 2
    server.engine.error = DecodingFailed(f"lost in {secret}", code="lockstep_lost")
    server.http.post(TEXT, json={**BODIES[TEXT], "decoding": guided(), "stream": stream})
    bad = {**BODIES[TEXT], "decoding": {"method": "cad", "guide": {"without": secret}}}
    server.http.post(TEXT, json=bad)
    text = server.written.getvalue()
    failed, refused = server.lines()
    assert (failed["outcome"], failed["error_code"]) == ("failed", "lockstep_lost")
    assert failed["level"] == "error"
    assert (refused["outcome"], refused["error_type"]) == ("client_error", "invalid_request_error")
    assert refused["level"] == "warning"
    assert refused["prompt_tokens"] is None
    assert secret not in text
    assert DOCUMENT.strip() not in text


def test_prompts_are_logged_when_asked_for(server: Server) -> None:
    server.app.state.log_prompts = True
    for path, body in BODIES.items():
        server.http.post(path, json=body)
    # Validation turns such a content into an iterator.
    parts = [
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}], "audio": {"id": "1"}}
    ]
    assert server.http.post(CHAT, json={**BODIES[CHAT], "messages": parts}).status_code == 200
    chat, text, of_parts = server.lines()
    assert chat["prompt"] == MESSAGES
    assert text["prompt"] == PROMPT
    assert of_parts["prompt"][0]["content"] == [{"type": "text", "text": "Hi"}]


def test_means_that_json_cannot_say() -> None:
    stack = Stack(METHODS["look_back"](method="look_back"))
    report = ChoiceReport(stack, False, 1.0, 0, undecoded)
    report.steps, report.sums = 2, {"kl_min": math.inf, "entropy": 3.0}
    record = Record(scope={"method": "POST"}, reports=[report])
    assert fields(record, TEXT)["mean"] == {"kl_min": None, "entropy": 1.5}


def test_a_stream_that_takes_ascii_only() -> None:
    """Such as standard output in the C locale: the line is written, with the same content."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    record = Record(scope={"method": "POST"}, prompt="Grüße, 東京 \ud83d")
    request_log("json", stream)(record, CHAT)
    stream.flush()
    assert json.loads(raw.getvalue())["prompt"] == "Grüße, 東京 \ud83d"


def test_the_key_is_named_not_shown() -> None:
    record = Record(scope={"method": "GET", "state": {KEY_NAME: "team-a"}})
    assert fields(record, "/v1/models")["key"] == "team-a"


def test_refused_requests_name_their_key_too(tmp_path: Path) -> None:
    """Rejected requests never reach the routes, but authentication has recorded the key's name."""
    file = tmp_path / "keys"
    file.write_text("team-a:sk-1\n")
    app = small_app(rate_limit="1/minute", api_key_file=file)
    written = io.StringIO()
    instrumentation.install(app, [request_log("json", written)])
    with TestClient(app) as http:
        for key in ("sk-1", "sk-1", "sk-2"):
            http.post("/echo", headers={"Authorization": f"Bearer {key}", "x-request-id": "r-1"})
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [(line["status"], line["key"]) for line in lines] == [
        (200, "team-a"),
        (429, "team-a"),
        (401, None),
    ]
    assert [line["error_code"] for line in lines] == [
        None,
        "rate_limit_exceeded",
        "invalid_api_key",
    ]
    assert {line["request_id"] for line in lines} == {"r-1"}
    assert "sk-" not in written.getvalue()


def test_for_people() -> None:
    written = io.StringIO()
    record = Record(scope={"method": "GET"}, status=200, complete=True)
    request_log("console", written)(record, "/v1/models")
    assert "request" in written.getvalue()
    assert "route=/v1/models" in written.getvalue()
    assert written.getvalue().count("\n") == 1


def test_a_client_does_not_steer_a_terminal() -> None:
    written = io.StringIO()
    record = Record(scope={"method": "GET"}, status=404, complete=True)
    record.model = "\x1b]0;title\x07\x1b[31mred\x9b2J\r\nfake\u202e"
    record.prompt = [{"role": "user", "content": "\x1b[2J"}]
    request_log("console", written)(record, "/v1/models")
    line = written.getvalue()
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    assert r"model=\x1b]0;title\x07\x1b[31mred\x9b2J\r\nfake\u202e " in line


@pytest.fixture
def escaping() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    log_text.escape_records()
    log_text.escape_records()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("escaping")
def test_neither_do_the_lines_of_other_packages() -> None:
    """Names and exceptions that quote a client, in logs of any package."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logger = logging.getLogger("a package")
    logger.addHandler(handler)
    logger.propagate = False
    logger.error("no model %s\nand\tmore", "\x1b[31mred\r")
    assert written.getvalue() == "no model \\x1b[31mred\\r\nand\tmore\n"
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception(f"no {chr(27)}")
        logger.error("none", exc_info=(None, None, None))
    text = written.getvalue()
    assert "no \\x1b\n" in text
    assert text.replace("\n", "").replace("\t", "").isprintable()
    assert "ValueError: \\x1b[2J\n" in text


@pytest.mark.usefixtures("escaping")
def test_the_records_of_uvicorn_keep_their_arguments() -> None:
    made = logging.getLogRecordFactory()
    record = made("uvicorn.access", 20, "", 1, "%s - %d", ("/a", 200), None)
    assert record.args == ("/a", 200)
    wrong = made("a package", 20, "", 1, "%d", ("a",), None)
    assert wrong.args == ("a",)


def test_instrumentation_is_outermost_and_sees_through_copies(server: Server) -> None:
    classes: list[Any] = [middleware.cls for middleware in server.app.user_middleware]
    assert classes[0] is instrumentation.Instrumentation
    assert classes[-1] is instrumentation.Inside


def test_vllm_writes_json_too() -> None:
    args = Namespace(log_format="json")
    log_format.have_vllm_join(args)
    assert asdict(args.logging_config)["formatter"] == "json"
    plain = Namespace(log_format="console")
    log_format.have_vllm_join(plain)
    assert plain == Namespace(log_format="console")


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    code = (
        "import sys, divserve.server; print(*sorted({'structlog', 'divserve.api.request_log', "
        "'divserve.api.spans'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.splitlines()[-1:] in ([], [""])
