"""Where a run goes on after a stop, and what it refuses to overwrite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from divserve.errors import StartupError
from divserve.scoring_file import record, run
from tests.scoring_file.scripted import Scripted, numbers, records, scored, written

pytestmark = pytest.mark.usefixtures("scripted")


@pytest.mark.parametrize("how", ["fail_at", "stop_at"])
def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, how: str) -> None:
    file, out = numbers(tmp_path), tmp_path / "out.jsonl"
    setattr(Scripted, how, 25)
    with pytest.raises((StartupError, KeyboardInterrupt)):
        scored(file, out)
    assert not out.exists()
    partial = Path(f"{out}.partial")
    kept = len(records(partial))
    assert 0 < kept <= 25
    with partial.open("a") as torn:
        torn.write('{"line": 3' if how == "fail_at" else '{"line": 3\n{}\n')
    first = [body["input"] for body in Scripted.bodies]
    Scripted.bodies, Scripted.fail_at, Scripted.stop_at = [], 10**6, 10**6
    summary = scored(file, out, parallel=2)
    assert Scripted.bodies[0]["input"] == str(kept + 1)
    assert {str(n) for n in range(1, kept + 1)} <= set(first)
    assert [record["line"] for record in records(out)] == list(range(1, 41))
    assert summary["scores"]["loss"]["mean"] == 20.5
    Scripted.bodies = []
    assert scored(file, out) == summary
    assert Scripted.bodies == []


def test_a_kill_before_the_output_is_in_place(tmp_path: Path) -> None:
    file, out = numbers(tmp_path, 5), tmp_path / "out.jsonl"
    summary = scored(file, out)
    out.rename(f"{out}.partial")
    Scripted.bodies = []
    assert scored(file, out) == summary
    assert Scripted.bodies == []
    assert len(records(out)) == 5


def test_other_settings_are_refused(tmp_path: Path) -> None:
    file, out = numbers(tmp_path, 5), tmp_path / "out.jsonl"
    scored(file, out, fields={"scores": ["loss"]})
    told = r'begun with scores = \["loss"\], not scores = \["pmi"\]: give the same file and options'
    with pytest.raises(StartupError, match=told):
        scored(file, out, fields={"scores": ["pmi"]})
    with pytest.raises(StartupError, match='model = "smol", not model = "x"'):
        scored(file, out, fields={"scores": ["loss"]}, model="x")
    written(file, {"input": "9"})
    with pytest.raises(StartupError, match=r"begun with input = .* --no-resume to start anew"):
        scored(file, out, fields={"scores": ["loss"]})
    scored(file, out, resume=False)
    assert [record["data"][0]["scores"]["loss"] for record in records(out)] == [9]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    file, out = numbers(tmp_path, 2), written(tmp_path / "out.jsonl", "mine")
    with pytest.raises(StartupError, match="exists and is not of this command"):
        scored(file, out)
    assert out.read_text() == "mine\n"
    (tmp_path / "b.jsonl.run.json").write_text("{")
    with pytest.raises(StartupError, match=r"run.json cannot be read: start anew"):
        scored(file, tmp_path / "b.jsonl")
    with (
        FileLock(tmp_path / "c.jsonl.lock"),
        pytest.raises(StartupError, match="another process writes"),
    ):
        scored(file, tmp_path / "c.jsonl")
    with pytest.raises(StartupError, match=r"cannot write .*in.jsonl/out.jsonl"):
        scored(file, file / "out.jsonl")
    assert Scripted.bodies == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops, and goes on when there is room again."""
    file, out = numbers(tmp_path), tmp_path / "out.jsonl"
    real, written_so_far = json.dumps, 0

    def full(value: Any, **options: Any) -> str:
        nonlocal written_so_far
        written_so_far += 1
        if written_so_far > 10:
            raise OSError(28, "No space left on device")
        return real(value, **options)

    monkeypatch.setattr(record, "json", SimpleNamespace(dumps=full, loads=json.loads))
    with pytest.raises(StartupError, match=r"cannot write .*: No space left on device"):
        scored(file, out)
    monkeypatch.undo()
    monkeypatch.setattr(run, "Server", Scripted)
    assert scored(file, out)["lines"] == 40


def test_an_output_that_cannot_be_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = numbers(tmp_path, 3), tmp_path / "out.jsonl"

    class InTheWay(Scripted):
        async def score(self, body: Mapping[str, Any]) -> dict[str, Any]:
            out.mkdir(exist_ok=True)
            return await super().score(body)

    monkeypatch.setattr(run, "Server", InTheWay)
    with pytest.raises(StartupError, match=r"cannot write .*: Is a directory"):
        scored(file, out)
    out.rmdir()
    Scripted.bodies = []
    assert scored(file, out)["lines"] == 3
    assert Scripted.bodies == []
