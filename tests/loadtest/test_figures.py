"""The arithmetic of latencies, percentiles, goodput and windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divserve.plots import svg
from loadtest import report
from loadtest.draw import drawing
from loadtest.figures import Run, percentile
from loadtest.sample import Sample, Tail, read_samples

ABOUT: dict[str, Any] = {
    "began": 100.0, "seconds": 10, "users": 3, "shape": "ramp", "slo_ttft": "500",
    "slo_tpot": "100", "guided_share": "0.5", "mix": "cad", "max_tokens": "16",
}  # fmt: skip


def sample(kind: str = "plain", began: float = 101.0, **fields: Any) -> Sample:
    given: dict[str, Any] = {
        "took": 1.0,
        "outcome": "ok",
        "chunks": [(0.25, 1), (0.35, 1), (0.65, 3)],
    }
    return Sample(kind=kind, began=began, **{**given, **fields})


def test_latencies_of_one_answer() -> None:
    one = sample()
    assert one.tokens == 5
    assert one.ttft == 0.25
    assert one.tpot == pytest.approx(0.1)
    assert one.itl == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert sum(one.itl) == pytest.approx(0.4)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    one = sample(chunks=[(0.25, 1)])
    assert (one.ttft, one.tpot, one.itl) == (0.25, None, [])
    assert one.meets(0.25, 0.001)
    assert not one.meets(0.24, 0.001)


def test_a_sample_survives_its_file_and_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    ones = [sample(), sample("cad", began=99.0, outcome="rejected", chunks=[], retry_after=1.5)]
    whole = "".join(one.to_json() + "\n" for one in ones)
    (tmp_path / "samples-1.jsonl").write_text(whole + ones[0].to_json()[:20])
    assert read_samples(tmp_path) == ones[::-1]
    tail = Tail(tmp_path)
    assert tail.new() == ones
    with (tmp_path / "samples-1.jsonl").open("a") as file:
        file.write(ones[0].to_json()[20:] + "\n")
    assert tail.new() == ones[:1]
    assert tail.new() == []


def test_percentiles_are_interpolated() -> None:
    assert percentile([4.0, 1.0, 2.0], 0.75) == 3.0


def test_there_is_no_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 0.5))


def test_goodput_counts_failed_and_rejected_requests_as_not_good() -> None:
    run = Run(
        ABOUT,
        [
            sample(),
            sample("cad", chunks=[(0.6, 1), (0.65, 1)]),  # Too late.
            sample("cad", chunks=[(0.1, 1), (0.3, 1)]),  # Too slow.
            sample("cad", chunks=[(0.5, 1), (0.6, 1)]),  # Just in time.
            sample("cad", outcome="failed", error="cut off", chunks=[(0.1, 1)]),
            sample("adacad", outcome="rejected", chunks=[], took=0.01, retry_after=1.0),
        ],
    )
    found = {one.name: one for one in run.summaries()}
    assert list(found) == ["all", "plain", "guided", "adacad", "cad"]
    assert found["all"].goodput == pytest.approx(2 / 6)
    assert found["all"].good_per_s == pytest.approx(0.2)
    assert found["guided"].goodput == pytest.approx(1 / 5)
    assert (found["cad"].ok, found["cad"].failed, found["cad"].rejected) == (3, 1, 0)
    assert found["adacad"].at("rejected", 0.5) == 0.01
    assert math.isnan(found["adacad"].at("ttft", 0.5))
    assert run.errors() == {"cut off": 1}


def test_tokens_that_come_after_the_end_are_no_throughput_of_the_test() -> None:
    run = Run(ABOUT, [sample(began=109.5, chunks=[(0.2, 1), (0.6, 4)])])
    assert run.summaries()[0].tokens_per_s == pytest.approx(0.1)


def test_windows_hold_first_tokens_by_request_and_gaps_by_token() -> None:
    run = Run(ABOUT, [sample(began=104.9)])
    assert run.windows(run.points("ttft", run.samples), 2) == [[0.25], []]
    gaps = run.windows(run.points("itl", run.samples), 2)
    assert [len(window) for window in gaps] == [0, 4]


def test_the_picture_shows_both_sides_and_the_losses() -> None:
    lost = sample("cad", outcome="rejected", chunks=[], retry_after=1.0)
    quiet = drawing(Run(ABOUT, [sample(), sample("cad")]))
    titles = [axes.get_title("left") for axes in quiet.axes]
    assert titles[:4] == ["Users (ramp)", "Throughput, tokens/s", "TTFT, ms", "ITL, ms"]
    assert "Failed and rejected requests/s" not in titles
    ttft = {line.get_label(): np.asarray(line.get_ydata()) for line in quiet.axes[2].lines}
    assert list(ttft) == ["plain, median", "plain, p95", "guided, median", "guided, p95"]
    for values in ttft.values():  # Both requests began in the second of ten windows.
        assert values[1] == 250
        assert np.isnan(np.delete(values, 1)).all()
    titles = [axes.get_title("left") for axes in drawing(Run(ABOUT, [sample(), lost])).axes]
    assert "Failed and rejected requests/s" in titles


def test_a_limit_out_of_reach_is_not_drawn() -> None:
    for limit, drawn in (("200", True), ("300", False)):
        axes = drawing(Run(ABOUT | {"slo_ttft": limit}, [sample()])).axes[2]
        assert ("SLO" in [line.get_label() for line in axes.lines]) is drawn


def test_the_file_has_no_points_that_are_no_numbers() -> None:
    picture = svg(drawing(Run(ABOUT, [sample(), sample("cad")])))
    assert picture.startswith("<svg")
    assert "nan" not in picture.lower()


def test_the_report_writes_figures_and_escapes_what_servers_say(tmp_path: Path) -> None:
    run = Run(ABOUT, [sample(), sample("cad", outcome="failed", error="HTTP 500: <b>")])
    report.write(run, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "1 × HTTP 500: &lt;b&gt;" in page
    assert (tmp_path / "figures.csv").read_text().startswith(",requests,answered,failed")
    metrics = {line["metric"]: line["value"] for line in report.lines(run)}
    assert metrics["plain: TTFT ms, median"] == "250"
    assert metrics["all: goodput"] == "0.500"
