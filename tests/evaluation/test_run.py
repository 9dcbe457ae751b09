"""Whole runs against a scripted server: what is asked, what is kept, and what the report says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from divserve import plots
from divserve.errors import StartupError
from divserve.evaluation import report, run
from divserve.evaluation.answers import Answer, Answers
from divserve.evaluation.arms import Arm, Listed
from divserve.evaluation.items import Item, Task
from divserve.evaluation.settings import Settings
from divserve.evaluation.table import rows, verdict
from tests.evaluation.listed import LISTED

ROW = [0.0, -1.0, -2.0]
ITEMS = [
    Item(
        id=str(number),
        group="even" if number % 2 == 0 else "odd",
        messages=[{"role": "user", "content": f"Text. {number}?"}],
        document="Text." if number < 8 else None,
        answers=["yes"],
    )
    for number in range(10)
]
TASK = Task(name="own", items=ITEMS)


class Scripted:
    """Methods are right, plain decoding is right about even numbers."""

    asked: list[tuple[str, str]]
    fail_at = 10**6

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url

    async def close(self) -> None: ...

    async def methods(self) -> dict[str, Listed]:
        return LISTED

    async def model(self) -> str:
        return "folder/smol"

    async def ask(
        self, task: str, item: Item, arm: Arm, model: str, seed: int, listed: Mapping[str, Listed]
    ) -> Answer:
        if len(Scripted.asked) >= Scripted.fail_at:
            raise StartupError("the server has left")
        Scripted.asked.append((arm.name, item.id))
        await asyncio.sleep(0)
        guided = arm.decoding_of(item, listed) is not None
        right = guided or int(item.id) % 2 == 0
        return Answer(
            task=task, arm=arm.name, item=item.id, text="Yes." if right else "No.", right=None,
            tokens=[1, 2, 3] if right else [1, 4, 4], guided=guided, seconds=0.5, first_s=0.1,
            rows=1 + guided, means={"kl": 0.25} if guided else {},
            entropy=0.5 if arm.sampled else None,
            likeliest=[ROW] * 3 if arm.sampled and not arm.decoding else [],
        )  # fmt: skip


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    Scripted.asked, Scripted.fail_at = [], 10**6
    monkeypatch.setattr(run, "Server", Scripted)


def settings(out: Path, **fields: Any) -> Settings:
    given = {"tasks": ("own",), "methods": ("cad", "linear_alignment"), "url": "http://x"}
    return Settings(**{**given, "out": out, "sampled": 4, **fields})


def evaluated(chosen: Settings) -> run.Done:
    return asyncio.run(run.evaluate(chosen, [TASK], lambda *_: None))


def test_arms_controls_and_the_report(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    done = evaluated(chosen)
    greedy = rows(done, TASK, done.greedy)
    assert [(row.arm, row.right, row.plainly) for row in greedy] == [
        ("plain", 5, 0), ("cad", 9, 2), ("linear_alignment", 9, 2),
    ]  # fmt: skip
    cad = greedy[1]
    assert (cad.won, cad.lost, cad.flips, cad.p) == (4, 0, 0.4, 0.125)
    assert (cad.first_divergence, cad.kl, cad.rows) == (2.2, 0.25, 1.8)
    assert cad.groups == {"even": (5, 5), "odd": (4, 5)}
    assert cad.tokens_per_s == 6
    names = [arm.name for arm in done.sampled["own"]]
    assert names[:2] == ["plain at 1", "cad at 1"]
    assert names[2].startswith("plain at the entropy of cad at 1 (temperature 0.")
    assert names[4] == "plain with the mask of linear_alignment at 1 (top_p 0.8)"
    assert len(done.of(TASK, done.sampled["own"][0])) == 4

    report.write(chosen, done, "2 cores", "abc")
    text = (tmp_path / "report.md").read_text()
    assert "# smol: methods against plain decoding" in text
    assert "cad no difference shown" in text
    assert "cad: 2 of 10 items have no document and were decoded plainly." in text
    assert ("![accuracy" in text) == plots.is_installed()
    whole = json.loads((tmp_path / "report.json").read_text())
    assert whole["tables"]["own"]["greedy"][1]["won"] == 4
    assert (whole["commit"], whole["model"]) == ("abc", "folder/smol")


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    Scripted.fail_at = 13
    with pytest.raises(StartupError, match="has left"):
        evaluated(settings(tmp_path))
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert 9 <= len(kept) <= 13
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"task": "own", "ar')
    Scripted.asked, Scripted.fail_at = [], 10**6
    evaluated(settings(tmp_path))
    assert len(Scripted.asked) == len(set(Scripted.asked))
    assert not {(one["arm"], one["item"]) for one in kept} & set(Scripted.asked)
    every = len(kept) + len(Scripted.asked)
    Scripted.asked = []
    evaluated(settings(tmp_path))
    assert Scripted.asked == []
    with pytest.raises(StartupError, match="begun with seed = 0, not 1"):
        evaluated(settings(tmp_path, seed=1))
    evaluated(settings(tmp_path, seed=1, resume=False))
    assert len(Scripted.asked) == every


def test_nothing_sampled(tmp_path: Path) -> None:
    chosen = settings(tmp_path, sampled=0, limit=4)
    done = evaluated(chosen)
    assert done.sampled == {"own": []}
    assert len(done.tasks[0].items) == 4
    report.write(chosen, done, "2 cores", None)
    assert "controls" not in (tmp_path / "report.md").read_text()


def test_verdicts(tmp_path: Path) -> None:
    answers = Answers(tmp_path, {})
    items = [Item(id=str(n), messages=ITEMS[0].messages, judge="none") for n in range(12)]
    task = Task(name="t", items=items)
    arms = [Arm("plain"), Arm("good"), Arm("bad"), Arm("same"), Arm("unjudged")]
    right: dict[str, bool | None] = {
        "plain": True, "good": True, "bad": False, "same": True, "unjudged": None,
    }  # fmt: skip
    for arm in arms:
        for item in items:
            answer = Answer(
                task="t",
                arm=arm.name,
                item=item.id,
                text=str(right[arm.name]),
                right=right[arm.name],
                tokens=[],
                guided=True,
                seconds=0,
                first_s=0,
            )
            answers.add(answer)
    done = run.Done("m", [task], arms, {"t": []}, answers, None)
    table = rows(done, task, arms)
    assert [verdict(row) for row in table[2:]] == ["hurts", "does nothing", "not judged"]
    worse = rows(done, task, [arms[2], arms[1]])
    assert verdict(worse[1]) == "helps"
    assert table[1].tokens_per_s == 0
