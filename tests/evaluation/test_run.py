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
from divserve.evaluation.origin import Origin
from divserve.evaluation.settings import Settings
from divserve.evaluation.table import Control, Group, Row, rows
from divserve.evaluation.verdicts import beside_controls, verdict
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
ORIGIN = Origin("2026-11-28", "abc", "2 cores", "Served with love.")


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
            rows=1 + guided, means={"kl": 0.25, "alpha": 0.5} if guided else {},
            applied=3 if guided else None, kls=[0.0, 0.25, 0.5] if guided else [],
            swapped=1 if guided and not arm.sampled else None,
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
    return asyncio.run(run.evaluate(chosen, [TASK], ORIGIN, lambda *_: None))


def test_arms_controls_and_the_report(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    done = evaluated(chosen)
    greedy = rows(done, TASK, done.greedy)
    assert [(row.arm, row.right, row.plainly) for row in greedy] == [
        ("plain", 5, 0), ("cad", 9, 2), ("linear_alignment", 9, 2),
    ]  # fmt: skip
    cad = greedy[1]
    assert (cad.won, cad.lost, cad.flips, cad.p) == (4, 0, 0.4, 0.125)
    assert (cad.first_divergence, cad.rows, cad.speed) == (2.2, 1.8, 1)
    assert cad.kl == {"mean": 0.25, "50 %": 0.25, "90 %": 0.5, "99 %": 0.5, "max": 0.5}
    assert (cad.means, cad.applied, cad.swapped) == ({"alpha": 0.5, "kl": 0.25}, 1, 1 / 3)
    assert (greedy[0].applied, greedy[0].swapped, greedy[0].kl) == (None, None, None)
    assert cad.groups == {"even": Group(5, 5, 0, 0, 1), "odd": Group(4, 5, 4, 0, 0.125)}
    assert cad.change.mean == 0.4
    assert cad.change.low < 0.4 < cad.change.high
    assert cad.tokens_per_s == 6
    names = [arm.name for arm in done.sampled["own"]]
    assert names[:2] == ["plain at 1", "cad at 1"]
    assert names[2].startswith("plain at the entropy of cad at 1 (temperature 0.")
    assert names[4] == "plain with the mask of linear_alignment at 1 (top_p 0.8)"
    assert len(done.of(TASK, done.sampled["own"][0])) == 4

    controls = [row.control for row in rows(done, TASK, done.sampled["own"])]
    assert controls[:2] == [None, None]
    assert controls[2:4] == [Control("cad at 1", 2, 0, 0.5), None]

    report.write(chosen, done)
    text = (tmp_path / "report.md").read_text()
    assert "# smol: methods against plain decoding" in text
    assert "- 2026-11-28, commit abc, on 2 cores. Served with love.\n" in text
    verdict_of = "| own | cad | 50.0% → 90.0% | 4, 0 | 0.125 | no difference shown | no "
    assert verdict_of in text
    assert "| cad | 100.0% | 33.3% | 0.250 | 0.250 | 0.500 | 0.500 | 0.500 | alpha 0.500 |" in text
    assert "| 2, 0, 0.500 |" in text
    assert "| plain | 5 of 5 | 0 of 5 |" in text
    assert "| cad | 5 of 5 (0, 0, 1.000) | 4 of 5 (4, 0, 0.125) |" in text
    assert "cad: 2 of 10 items have no document and were decoded plainly." in text
    assert ("![each arm" in text) == plots.is_installed()
    whole = json.loads((tmp_path / "report.json").read_text())
    assert whole["tables"]["own"]["greedy"][1]["won"] == 4
    assert (whole["origins"][0]["commit"], whole["model"]) == ("abc", "folder/smol")


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
    report.write(chosen, done)
    assert "Sampled at" not in (tmp_path / "report.md").read_text()


def answer(arm: str, item: Item, right: bool | None, tokens: list[int]) -> Answer:
    return Answer(
        task="t", arm=arm, item=item.id, text=str(tokens), right=right, tokens=tokens, guided=True,
        seconds=0, first_s=0,
    )  # fmt: skip


def table_of(folder: Path, kinds: Mapping[str, tuple[bool | None, list[int]]]) -> list[Row]:
    """The rows of arms all of whose answers are alike; ``control~method`` is a control."""
    answers = Answers(folder, {}, ORIGIN)
    items = [Item(id=str(n), messages=ITEMS[0].messages, judge="none") for n in range(12)]
    arms = [Arm(name, control_of=name.partition("~")[2] or None) for name in kinds]
    for arm in arms:
        for item in items:
            answers.add(answer(arm.name, item, *kinds[arm.name]))
    task = Task(name="t", items=items)
    return rows(run.Done("m", [task], arms, {"t": []}, answers, None), task, arms)


def test_verdicts(tmp_path: Path) -> None:
    made = {"good": (True, [1]), "bad": (False, [2]), "same": (True, [1]), "other": (True, [3])}
    table = table_of(tmp_path / "a", made)
    assert [verdict(row) for row in table[1:]] == ["hurts", "does nothing", "no difference shown"]
    assert verdict(table_of(tmp_path / "b", dict(reversed(made.items())))[2]) == "hurts"
    assert table[1].tokens_per_s == table[1].speed == 0


def test_verdicts_on_texts_that_are_not_judged(tmp_path: Path) -> None:
    loop, free, other = [1] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9], [2] * 9
    made = {"plain": (None, loop), "free": (None, free), "other": (None, other)}
    table = table_of(tmp_path / "a", made)
    assert [verdict(row) for row in table[1:]] == ["more diverse", "no difference shown"]
    assert beside_controls(table[1], table) == "more diverse"
    table = table_of(tmp_path / "b", {"plain": (None, free), "loop": (None, loop)})
    assert verdict(table[1]) == "less diverse"


def test_verdicts_beside_controls(tmp_path: Path) -> None:
    good, bad = (True, [1]), (False, [2])
    kinds = {"plain": bad, "m": good, "mask~m": bad, "cold~m": good, "n": good, "mask~n": bad}
    table = table_of(tmp_path / "a", {**kinds, "alone": good})
    told = [beside_controls(row, table) for row in table if row.control is None]
    assert told[1:] == [
        "helps no more than a control", "helps beyond its controls", "helps (no control)",
    ]  # fmt: skip


def test_sampled_answers_only(tmp_path: Path) -> None:
    chosen = settings(tmp_path, max_tokens=5)
    task = TASK.model_copy(update={"greedy": False})
    done = asyncio.run(run.evaluate(chosen, [task], ORIGIN, lambda *_: None))
    assert done.greedy_of(task) == ()
    assert {item.max_tokens for item in done.tasks[0].items} == {5}
    assert all(arm.endswith((" at 1", ")")) for arm, _ in Scripted.asked)
    report.write(chosen, done)
    text = (tmp_path / "report.md").read_text()
    assert "Greedy, " not in text
    assert "| own | cad |  |  |  |  | no difference shown |" in text
    with pytest.raises(StartupError, match="own has only sampled answers"):
        asyncio.run(run.evaluate(settings(tmp_path, sampled=0), [task], ORIGIN, lambda *_: None))


def test_answers_of_two_commits(tmp_path: Path) -> None:
    first = Answers(tmp_path, {}, ORIGIN)
    assert first.origins() == []
    first.add(answer("plain", ITEMS[0], True, [1]))
    later = Origin("2026-11-29", None, "1 core")
    Answers(tmp_path, {}, later)
    assert first.origins() == [ORIGIN]
    Answers(tmp_path, {}, later).add(answer("plain", ITEMS[1], True, [1]))
    assert first.origins() == [ORIGIN, later]
    assert str(later) == "2026-11-29, on 1 core."
    assert Answers(tmp_path, {}, later, resume=False).origins() == []
