"""Task files, built-in tasks, and how answers are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.evaluation.items import Item, Task, load
from divserve.evaluation.judges import judged
from divserve.evaluation.tasks import TASKS

USER = [{"role": "user", "content": "What is it? The text."}]


def item(**fields: Any) -> Item:
    return Item(**{"id": "1", "messages": USER, "answers": ["Lyon"], **fields})


@pytest.mark.parametrize("name", TASKS)
def test_built_in_tasks(name: str) -> None:
    """The same items each time, enough for an interval, and no right answer is also wrong."""
    task = TASKS[name]()
    assert task == TASKS[name]()
    assert task.name == name
    assert len(task.items) >= 32
    for one in task.items:
        assert not set(one.answers) & set(one.others)


def test_every_group_keeps_its_share() -> None:
    task = TASKS["conflict"]()
    groups = {one.group for one in task.items}
    few = task.spread(12)
    assert sorted(one.group for one in few.items) == sorted([*groups] * 3)
    assert {one.group for one in task.spread(1).items} == groups
    assert task.spread(None) is task.spread(400) is task


@pytest.mark.parametrize(
    ("fields", "text", "right"),
    [
        ({}, "It is LYON, of course.", True),
        ({}, "Lyonnais", False),
        ({"others": ["Paris"]}, "Paris, not Lyon", False),
        ({"others": ["Paris"]}, "Lyon, not Paris", True),
        ({"judge": "exact"}, "The Lyon.", True),
        ({"judge": "exact"}, "Lyon it is", False),
        ({"judge": "number", "answers": ["1200"]}, "3 times 400 is 1,200.", True),
        ({"judge": "number", "answers": ["12"]}, "It is 12, no, 13", False),
        ({"judge": "number", "answers": ["12"]}, "twelve", False),
        ({"judge": "none", "answers": []}, "anything", None),
    ],
)
def test_judges(fields: dict[str, Any], text: str, right: bool | None) -> None:
    assert judged(item(**fields), text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("```python\ndef two():\n    return 2\n```\nThat is it.", True),
        ("def two():\n    return 2", True),
        ("def two():\n    return 3", False),
        ("raise SystemExit(0)", False),
        ("open('x', 'w').write('x' * (1 << 21))\ndef two(): return 2", False),
        ("x = ' ' * (1 << 31)\ndef two(): return 2", False),
        ("import os\nassert not os.listdir()\nassert 'PATH' not in os.environ\ndef two(): return 2",
         True),
        ("\0", False),
    ],
)  # fmt: skip
def test_code_runs_apart(text: str, right: bool) -> None:
    assert judged(item(judge="python", tests="assert two() == 2"), text) is right


def test_code_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divserve.evaluation.sandbox.SECONDS", 1)
    assert judged(item(judge="python", tests="pass"), "while True: pass") is False


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("{", "line 1 is not JSON"),
        (json.dumps({"id": "1"}), "line 1: messages: Field required"),
        ("\n" + json.dumps({"id": "1", "messages": USER}), "line 2: item: .*needs 'answers'"),
        (json.dumps({"id": "1", "messages": USER, "judge": "python"}), "needs 'tests'"),
        (
            json.dumps({"id": "1", "messages": USER, "judge": "none", "document": "no"}),
            "does not stand in the messages",
        ),
        (
            (json.dumps({"id": "1", "messages": USER, "judge": "none"}) + "\n") * 2,
            "have the id '1'",
        ),
        ("", "at least 1 item"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, lines: str, told: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(lines)
    with pytest.raises(StartupError, match=told):
        load(file)


def test_a_file_of_items(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    with pytest.raises(StartupError, match="cannot read"):
        load(file)
    file.write_text(item().model_dump_json() + "\n\n")
    assert load(file) == Task(name="own", items=[item()])
