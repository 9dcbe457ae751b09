"""``divserve eval`` as a user calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from divserve import cli
from divserve.evaluation import command, report, run


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["no_such", "--method", "cad"], "there is no task 'no_such': give a .jsonl file, or conf"),
        (["none.jsonl", "--method", "cad"], "cannot read the task none.jsonl"),
        (["conflict", "--method", "cad", "--url", "http://127.0.0.1:9"],
         "does not list decoding methods"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    args: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("divserve.evaluation.client.RETRIES", 0)
    out = tmp_path / "out"
    assert cli.main(["eval", *args, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.count("\n") == 1
    assert not out.exists()


def test_a_run_and_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def evaluate(settings: Any, tasks: Any, origin: Any, progress: Any) -> str:
        seen.extend((settings, origin))
        progress("conflict: plain", 1, 1)
        if settings.seed == 1:
            raise KeyboardInterrupt
        return "done"

    monkeypatch.setattr(run, "evaluate", evaluate)
    monkeypatch.setattr(report, "write", lambda *given: seen.append(given))
    monkeypatch.setenv(command.KEY, "secret")
    args = ["eval", "conflict", "--method", "cad", "--method", "x={}", "--out", str(tmp_path)]
    assert cli.main(args) == 0
    assert (seen[0].methods, seen[0].key) == (("cad", "x={}"), "secret")
    assert "conflict: plain: 1" in capsys.readouterr().err
    assert "cores" in seen[1].hardware
    assert seen[1].commit
    assert seen[2][1] == "done"
    assert cli.main([*args, "--seed", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
