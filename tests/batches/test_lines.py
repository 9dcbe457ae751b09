"""The lines of an input file: which are requests, and how they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from divserve.batches import lines as module
from divserve.batches.lines import BadLine, Check, chunks, parse
from tests.support.batches import CHAT, jsonl, line

LONGEST = 1000


def checked(path: Path, most: int = 100) -> Check:
    check = Check(CHAT, LONGEST, most)
    for chunk in chunks(path, LONGEST):
        if not check.add(chunk):
            break
    check.end()
    return check


def test_a_line_is_a_request() -> None:
    found = parse(7, json.dumps(line("a", priority=3)).encode(), CHAT, LONGEST)
    assert (found.number, found.custom_id, found.body["priority"]) == (7, "a", 3)


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (json.dumps({**line("a"), "custom_id": 1}).encode(), "invalid_custom_id", "custom_id"),
        (json.dumps(line("")).encode(), "invalid_custom_id", "custom_id"),
        (json.dumps(line("a" * 513, "")).encode(), "invalid_custom_id", "custom_id"),
        (json.dumps({**line("a"), "method": "GET"}).encode(), "invalid_method", "method"),
        (json.dumps({**line("a"), "url": "/v1/embeddings"}).encode(), "mismatched_url", "url"),
        (json.dumps({**line("a"), "url": CHAT + "/"}).encode(), "mismatched_url", "url"),
        (json.dumps({**line("a"), "body": []}).encode(), "invalid_body", "body"),
    ],
)
def test_lines_that_are_none(text: bytes, code: str, param: str | None) -> None:
    with pytest.raises(BadLine) as caught:
        parse(1, text, CHAT, 200_000)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_line_is_bounded_before_it_is_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(jsonl(line("a"), line("b", "x" * 5000), line("c")))
    assert max(len(text) for chunk in chunks(path, LONGEST) for _, text in chunk) == LONGEST + 1
    check = checked(path)
    assert [(error.code, error.line) for error in check.errors] == [("line_too_long", 2)]
    assert check.total == 3
    # A last line that is too long has no end either.
    path.write_bytes(jsonl(line("a")) + b"x" * 5000)
    assert [error.line for error in checked(path).errors] == [2]
    exact = json.dumps(line("a")).encode()
    path.write_bytes(exact.replace(b'"a"', b'"' + b"a" * (LONGEST - len(exact) + 1) + b'"', 1))
    assert path.stat().st_size == LONGEST
    assert checked(path).errors[0].code == "invalid_custom_id"


def test_blank_lines_and_the_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in"
    text = b"\xef\xbb\xbf\n\r\n" + jsonl(line("a")) + b"  \n" + jsonl(line("b")).rstrip()
    path.write_bytes(text)
    found = [number for chunk in chunks(path, LONGEST) for number, _ in chunk]
    assert found == [3, 5]
    assert checked(path).errors == []


def test_lines_come_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in"
    path.write_bytes(jsonl(*(line(str(n)) for n in range(130))))
    assert [len(chunk) for chunk in chunks(path, LONGEST)] == [64, 64, 2]
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    assert [len(chunk) for chunk in chunks(path, LONGEST)] == [*[1] * 130, 0]


def test_errors_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"no\n" * 1000)
    check = checked(path, 1000)
    assert len(check.errors) == 100
    assert check.total == 100


def test_one_line_too_many(tmp_path: Path) -> None:
    """As with OpenAI, 50,000 lines are a batch, and one more fails it."""
    path = tmp_path / "in"
    lines: list[Any] = [line(str(n)) for n in range(50_000)]
    path.write_bytes(jsonl(*lines))
    check = checked(path, 50_000)
    assert (check.total, check.errors, check.models) == (50_000, [], {"smol"})
    with path.open("ab") as file:
        file.write(jsonl(line("one more")))
    check = checked(path, 50_000)
    assert [(error.code, error.line) for error in check.errors] == [("too_many_lines", 50_001)]
    assert "--batch-max-lines" in str(check.errors[0].message)
