"""`make eval`: which commands it runs, when it stops, and the report that it joins."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from bench import evaluate
from bench.evaluate import STUDIES
from divserve.decoding import METHODS
from divserve.evaluation import arms
from divserve.evaluation.tasks import TASKS
from tests.evaluation.listed import LISTED


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
        (folder / "report.json").write_text(json.dumps({"name": name}))
        (folder / f"{name}.svg").write_text("<svg/>")
    (tmp_path / "work" / "smol" / "code").mkdir()
    evaluate.publish("smol", tmp_path / "results")
    made = tmp_path / "results" / "smol"
    assert {file.name for file in made.iterdir()} == {
        "report.md", "report.json", "conflict.svg", "texts.svg",
    }  # fmt: skip
    assert json.loads((made / "report.json").read_text()) == {
        "conflict": {"name": "conflict"}, "texts": {"name": "texts"},
    }  # fmt: skip
    text = (made / "report.md").read_text()
    assert text.startswith("# smol: methods against plain decoding\n\n## Study: conflict\n\nSaid.")
    assert "\n## Study: texts\n\nSaid.\n\n### texts\n" in text
