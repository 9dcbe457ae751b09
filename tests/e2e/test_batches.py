"""A batch on a real server that is killed in the middle and started again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.support.chat import CAD, MESSAGES
from tests.support.server import API_KEY, TOGETHER, serving

LINES, TOKENS, BEFORE = 60, 100, 8
WAIT_S = 300
KEEP = ("--batch-max-rows", "8", "--batch-dir")


def body(number: int) -> dict[str, Any]:
    """Every second line is guided, and every tenth is wrong."""
    request: dict[str, Any] = {
        "model": "smol", "messages": MESSAGES, "max_tokens": TOKENS, "ignore_eos": True,
        "seed": number,
    }  # fmt: skip
    if number % 2:
        request["decoding"] = CAD
    if number % 10 == 0:
        request["temperature"] = -1
    return request


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(pid: int) -> None:
    """SIGKILL to a server, as the kernel does for want of memory: its engine ends by itself."""
    server = psutil.Process(pid)
    others = server.children(recursive=True)
    server.kill()
    _, alive = psutil.wait_procs(others, timeout=WAIT_S)
    assert not alive


@pytest.mark.long
def test_each_line_is_answered_exactly_once(tiny_with_tokenizer: Path, tmp_path: Path) -> None:
    """Long: two servers; `tests.batches.test_restarts` does the same without an engine."""
    flags = (*KEEP, str(tmp_path / "batches"))
    lines = [
        {"custom_id": f"n{n}", "method": "POST", "url": "/v1/chat/completions", "body": body(n)}
        for n in range(LINES)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()

    def answered() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return 0 if counts is None else counts.completed

    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    with serving(tiny_with_tokenizer, first, flags, environment=TOGETHER) as (url, one):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY)
        uploaded = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        until(lambda: answered() >= BEFORE)
        kill(one.pid)
    folder = tmp_path / "batches" / "batches" / batch.id
    # The last line may be torn.
    whole = (folder / "output.jsonl").read_text().split("\n")[:-1]
    before = {json.loads(line)["id"] for line in whole}
    assert BEFORE <= len(before) < LINES
    with serving(tiny_with_tokenizer, second, flags, environment=TOGETHER) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY)
        until(lambda: client.batches.retrieve(batch.id).status == "completed")
        ended = client.batches.retrieve(batch.id)
        assert ended.output_file_id is not None
        assert ended.error_file_id is not None
        found = [
            [json.loads(line) for line in client.files.content(name).text.splitlines()]
            for name in (ended.output_file_id, ended.error_file_id)
        ]
    output, errors = found
    assert Counter(each["custom_id"] for each in output + errors) == Counter(
        f"n{n}" for n in range(LINES)
    )
    assert {each["custom_id"] for each in errors} == {f"n{n}" for n in range(0, LINES, 10)}
    # What was there before the kill is what the client gets.
    assert before <= {each["id"] for each in output}
    for each in output:
        choice = each["response"]["body"]["choices"][0]
        guided = int(each["custom_id"][1:]) % 2 == 1
        assert each["response"]["body"]["usage"]["completion_tokens"] == TOKENS
        assert guided == ("decoding" in choice)
        assert not guided or choice["decoding"]["applied_steps"] == TOKENS
