"""Whole runs against a scripted server: what is asked, and what is written."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.scoring_file import parquet, run, tally
from divserve.scoring_file.settings import Settings, fields_of
from tests.scoring_file.scripted import Scripted, numbers, records, scored, written

pytestmark = pytest.mark.usefixtures("scripted")


def test_records_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    told: list[tuple[int, int, int]] = []
    settings = Settings(
        numbers(tmp_path), out, "http://x", None, None, {"scores": ["loss"]}, parallel=4
    )
    summary = asyncio.run(run.score_file(settings, lambda *given: told.append(given)))
    found = records(out)
    assert [record["id"] for record in found] == [f"t{n}" for n in range(1, 41)]
    assert found[4] == {
        "line": 5, "id": "t5", "data": [{"index": 0, "tokens": 3, "scores": {"loss": 5}}],
        "usage": {"prompt_tokens": 4},
    }  # fmt: skip
    assert Scripted.bodies[0] == {"model": "smol", "scores": ["loss"], "input": "1"}
    assert 1 < Scripted.most_at_once <= 4
    assert (told[0], told[-1]) == ((0, 40, 0), (40, 40, 0))
    loss = summary["scores"]["loss"]
    assert (summary["lines"], summary["texts"], summary["tokens"]) == (40, 40, 120)
    assert (loss["count"], loss["null"], loss["mean"], loss["median"]) == (40, 0, 20.5, 20.5)
    assert loss["5 %"] == pytest.approx(2.95)
    assert loss["larger_means"] == "less likely text"
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "out.jsonl", "out.jsonl.lock", "out.jsonl.run.json",
    ]  # fmt: skip


def test_few_lines_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind an answer that does not come, others go on only so far."""
    released = asyncio.Event()

    class Held(Scripted):
        async def score(self, body: Mapping[str, Any]) -> dict[str, Any]:
            if body["input"] == "1":
                await released.wait()
            elif len(Scripted.bodies) == run.AHEAD * 4 - 2:
                asyncio.get_running_loop().call_later(0.2, look)
            return await super().score(body)

    seen: list[int] = []

    def look() -> None:
        seen.append(len(Scripted.bodies))
        released.set()

    monkeypatch.setattr(run, "Server", Held)
    scored(numbers(tmp_path), tmp_path / "out.jsonl")
    assert seen == [run.AHEAD * 4 - 1]
    assert [record["line"] for record in records(tmp_path / "out.jsonl")] == list(range(1, 41))


def test_lines_that_fail_are_records_too(tmp_path: Path) -> None:
    deep = "[" * 200_000
    file = written(
        tmp_path / "in.jsonl",
        {"id": 7, "input": ["1", "none"], "model": "other"}, "", {"input": "bad"}, "{", "[1]",
        {"id": [1], "input": "1"}, '{"input": NaN}', '{"input": "\\ud800"}', deep,
        {"id": True, "input": "1"},
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + b'{"id": "\xff"}\n{"id": "last", "input": "3"}')
    summary = scored(file, tmp_path / "out.jsonl")
    found = records(tmp_path / "out.jsonl")
    assert [record["line"] for record in found] == [1, *range(3, 13)]
    assert Scripted.bodies[0]["model"] == "other"
    assert (found[0]["id"], found[-1]["id"]) == (7, "last")
    assert found[1]["error"]["param"] == "input"
    messages = [record["error"]["message"] for record in found[1:-1]]
    starts = [
        "'input' is bad.", "the line is not JSON: Expecting", "the line is not a JSON object",
        "'id' must be a string or an integer", "the line is not JSON: NaN is not a number",
        "the line is not JSON: 'utf-8' codec can't encode", "the line is nested too deeply",
        "'id' must be", "the line is not JSON: 'utf-8' codec can't decode",
    ]  # fmt: skip
    assert [m.startswith(s) for m, s in zip(messages, starts, strict=True)] == [True] * 9, messages
    assert (summary["failed"], len(summary["failures"]), summary["texts"]) == (9, 9, 3)
    assert summary["scores"]["loss"]["null"] == 1


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divserve.scoring_file.lines.MOST_BYTES", 40)
    monkeypatch.setattr("divserve.scoring_file.lines.CHUNK", 7)
    file = written(tmp_path / "in.jsonl", {"input": "1" * 100}, {"input": "2"}, {"input": "3" * 50})
    summary = scored(file, tmp_path / "out.jsonl")
    assert [record["line"] for record in summary["failures"]] == [1, 3]
    assert summary["failures"][0]["error"]["message"] == "the line has more than 40 bytes"
    assert (summary["lines"], summary["texts"]) == (3, 1)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["nope"], "there is no score 'nope': the scores are loss, pmi, zlib, binoculars"),
        (["loss", "zlib"], "zlib is not offered by this server: it needs --scores membership"),
        (["binoculars"], "binoculars is not offered by this server: it needs amateur"),
    ],
)
def test_scores_that_no_line_can_have(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(StartupError) as error:
        scored(numbers(tmp_path), tmp_path / "out.jsonl", fields={"scores": names})
    assert str(error.value) == told
    assert Scripted.bodies == []


def test_mistakes_in_options(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"must end in \.jsonl or \.parquet"):
        Settings(tmp_path / "a.jsonl", tmp_path / "b.csv", "")
    with pytest.raises(StartupError, match="is the input"):
        Settings(tmp_path / "a.jsonl", tmp_path / "a.jsonl", "")
    with pytest.raises(StartupError, match=r"cannot read .*a.jsonl: No such file"):
        scored(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    with pytest.raises(StartupError, match="--guide: nope is not JSON"):
        fields_of((), None, "nope")
    with pytest.raises(StartupError, match=r"--method: cannot read no.json: No such file"):
        fields_of((), "no.json", None)
    assert fields_of((), None, None, k=None) == {}
    file = written(tmp_path / "m.json", {"method": "cad"})
    assert fields_of(["loss, pmi", "loss"], str(file), '{"without": "x"}', k=0.1) == {
        "scores": ["loss", "pmi"], "method": {"method": "cad"}, "guide": {"without": "x"}, "k": 0.1,
    }  # fmt: skip
    assert fields_of((), "cad", None) == {"method": "cad"}
    assert fields_of((), '[{"method": "cad"}]', None) == {"method": [{"method": "cad"}]}


def test_quantiles_of_very_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "KEPT", 2000)
    found = tally.Tally()
    for number in range(20_000):
        found.add({"data": [{"tokens": 1, "scores": {"loss": number, "none": None}}]})
    scores = found.summary({})["scores"]
    assert len(found.values["loss"].kept) == 2000
    assert (scores["loss"]["mean"], scores["loss"]["sampled"]) == (9999.5, True)
    assert scores["loss"]["median"] == pytest.approx(10_000, rel=0.1)
    assert scores["loss"]["95 %"] == pytest.approx(19_000, rel=0.05)
    assert scores["none"] == {"larger_means": "", "count": 0, "null": 20_000}


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StartupError, match=r"needs pyarrow \(pip install pyarrow\)"):
        scored(numbers(tmp_path), tmp_path / "out.parquet")
    assert Scripted.bodies == []


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several row groups, several texts in a line, failed lines."""
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the extra 'parquet'")
    monkeypatch.setattr(parquet, "ROWS", 2)
    file = written(
        tmp_path / "in.jsonl", {"id": 7, "input": ["1", "none"]}, {"input": "bad"},
        {"id": "c", "input": "3"}, {"input": "4"},
    )  # fmt: skip
    out = tmp_path / "out.parquet"
    summary = scored(file, out)
    table = pq.read_table(out)
    assert pq.ParquetFile(out).num_row_groups == 3
    assert table.column_names == [
        "line", "id", "index", "tokens", "loss", "excluded", "trace", "error",
    ]  # fmt: skip
    columns = table.to_pydict()
    assert columns["line"] == [1, 1, 2, 3, 4]
    assert columns["id"] == ["7", "7", None, "c", None]
    assert columns["index"] == [0, 1, None, 0, 0]
    assert columns["loss"] == [1, None, None, 3, 4]
    assert columns["error"] == [None, None, "'input' is bad.", None, None]
    assert not Path(f"{out}.partial").exists()
    Scripted.bodies = []
    assert scored(file, out) == summary
    assert Scripted.bodies == []
