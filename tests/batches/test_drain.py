"""SIGTERM while a batch runs, without an engine: the server leaves and waits for no line."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import openai

from divserve.batches.folder import prepare
from tests.support.batches import begin, line, until
from tests.support.fake_server import served

LEAVES_WITHIN_S = 30
TOKENS = 6000
"""Five minutes of an answer."""


def test_the_server_leaves_although_lines_run(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    prepare(folder)
    long: dict[str, Any] = {"max_tokens": TOKENS}
    edges = {"batch_dir": str(folder), "drain_timeout": 240}
    with served(tmp_path / "log.txt", **edges) as (url, process):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            lines = [line("short", max_tokens=1), *(line(str(n), **long) for n in range(20))]
            batch_id = begin(client, *lines)
            output = folder / "batches" / batch_id / "output.jsonl"
            until(lambda: output.exists() and output.stat().st_size)
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LEAVES_WITHIN_S) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    stored = json.loads((folder / "batches" / batch_id / "batch.json").read_text())
    assert stored["batch"]["status"] == "in_progress"
    answered = [json.loads(each)["custom_id"] for each in output.read_bytes().splitlines()]
    assert answered == ["short"]
    assert (folder / "batches" / batch_id / "errors.jsonl").read_bytes() == b""
