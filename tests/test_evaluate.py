"""`make eval`: which commands it runs, when it stops, and the report that it joins."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import evaluate, plot_evaluation
from bench.evaluate import STUDIES
from divserve.decoding import METHODS
from divserve.evaluation import arms
from divserve.evaluation.tasks import TASKS
from tests.evaluation.listed import LISTED


def row(arm: str, accuracy: float | None, control: Any = None) -> dict[str, Any]:
    group = {"right": 3, "judged": 9, "won": 3, "lost": 1, "p": 0.6}
    return {
        "arm": arm, "accuracy": accuracy, "control": control, "change": [0.2, -0.1, 0.5],
        "groups": {"document": group, "none": group},
    }  # fmt: skip


def figures(task: str) -> dict[str, Any]:
    """The report of a study of one task, which is judged if it is ``conflict``."""
    accuracy = 0.5 if task == "conflict" else None
    sampled = [row("plain at 1", accuracy), row("cad at 1", accuracy)]
    mask = row("plain with the mask of cad at 1 (min_p 0.1)", accuracy, {"of": "cad at 1"})
    greedy = [row("plain", accuracy), row("cad", accuracy)]
    return {"tables": {task: {"greedy": greedy, "sampled": [*sampled, mask]}}}


def test_the_picture_of_all_changes_and_that_of_the_groups() -> None:
    report = {"conflict": figures("conflict"), "texts": figures("texts")}
    (axes,) = plot_evaluation.changes(report).axes
    assert [label.get_text() for label in reversed(axes.get_yticklabels())] == [
        "conflict: cad", "conflict: cad at 1", "plain with the mask of cad at 1",
        "texts (diversity): cad", "texts (diversity): cad at 1", "plain with the mask of cad at 1",
    ]  # fmt: skip
    assert [*np.asarray(axes.lines[1].get_xdata())] == [-10, 50]
    (axes,) = plot_evaluation.by_group(report, "conflict").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none: cad", "document: cad"]
    low, high = np.asarray(axes.lines[1].get_xdata(), float)
    assert low < 0 < 100 * 2 / 9 < high


def test_studies_name_what_exists() -> None:
    tasks = [task for study in STUDIES for task in study.tasks]
    assert sorted(tasks) == sorted(TASKS)
    known = {
        name: type(one)(True, one.guide_required, one.defaults, one.grounding)
        for name, one in LISTED.items()
    }
    for study in STUDIES:
        assert arms.given(study.methods, known)
        made = evaluate.command(study, "http://x", "smol", 4)
        assert made[made.index("--limit") + 1] == str(study.limit)
        assert made.count("--method") == len(study.methods)
        assert f"Server: divserve serve smol {' '.join((*evaluate.SERVER, *study.flags))}." in made
    assert {"--look-back", "--amateur"} < {flag for study in STUDIES for flag in study.flags}
    assert len(METHODS) > 10


def test_a_command_is_stopped_when_time_is_over() -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    start = time.monotonic()
    assert evaluate.ended(sleeping, start + 0.5) is None
    assert time.monotonic() - start < 30
    assert evaluate.ended([sys.executable, "-c", "raise SystemExit(3)"], start + 100) == 3


def test_reports_of_the_studies_that_are_done_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "WORK", tmp_path / "work")
    for name in ("conflict", "texts"):
        folder = tmp_path / "work" / "smol" / name
        folder.mkdir(parents=True)
        (folder / "report.md").write_text(f"# smol: methods\n\nSaid.\n\n## {name}\n\n# no\n")
        (folder / "report.json").write_text(json.dumps(figures(name)))
        (folder / f"{name}.svg").write_text("<svg/>")
    (tmp_path / "work" / "smol" / "code").mkdir()
    evaluate.publish("smol", tmp_path / "results")
    made = tmp_path / "results" / "smol"
    assert {file.name for file in made.iterdir()} == {
        "report.md", "report.json", "conflict.svg", "texts.svg", "changes.svg",
        "conflict-groups.svg",
    }  # fmt: skip
    assert [*json.loads((made / "report.json").read_text())] == ["conflict", "texts"]
    assert "plain with the mask of cad" in (made / "changes.svg").read_text()
    assert "none: cad" in (made / "conflict-groups.svg").read_text()
    text = (made / "report.md").read_text()
    assert text.startswith("# smol: methods against plain decoding\n\n## Study: conflict\n\nSaid.")
    assert "\n## Study: texts\n\nSaid.\n\n### texts\n" in text
