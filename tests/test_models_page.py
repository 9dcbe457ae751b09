"""docs/models.md is what tests/data/models.json and the tables of refusals say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models_page import KINDS, PAGE, RECORD, TABLES, Row, page, record, rows

FOUND = Row("architecture", "Llama", "two rounds", "float32", "transformers", 3.4e-5)


def test_the_page_is_up_to_date() -> None:
    """`python -m tests.support.models_page` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_row_says_what_was_compared_or_why_it_was_not(row: Row) -> None:
    assert row.kind in KINDS
    assert (row.checked and row.on and row.reference) or row.why


def test_everything_is_on_the_page() -> None:
    text = page([FOUND, Row("quantisation", "AWQ", why="needs CUDA")])
    assert "| Llama | two rounds | float32 | transformers | 3e-05 |  |" in text
    assert "| AWQ | not judged |  |  |  | needs CUDA |" in text
    for table in TABLES.values():
        for mode in table:
            assert f"| {mode.name} | {mode.why} |" in text


def test_tests_record_only_when_they_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "models.json"
    path.write_text("[]")
    monkeypatch.delenv(RECORD, raising=False)
    record(FOUND, path)
    assert rows(path) == []
    monkeypatch.setenv(RECORD, "1")
    first = Row("architecture", "Gemma 3", "two rounds", "float32", "transformers", 2.0)
    for row in (FOUND, first, Row("architecture", "Llama", "three rounds")):
        record(row, path)
    assert [(row.name, row.checked) for row in rows(path)] == [
        ("Gemma 3", "two rounds"),
        ("Llama", "three rounds"),
    ]
