"""The targets in docs/performance.md are what bench/results.csv says."""

from __future__ import annotations

import csv
from collections.abc import Mapping

import pytest

from bench.performance import PAGE, TARGETS, Target, figures, page
from loadtest.record import RESULTS

H100 = "NVIDIA H100 80GB HBM3"


def line(bench: str, case: str, metric: str, value: str, hardware: str = H100) -> dict[str, str]:
    return {
        "date": "2027-01-01", "commit": "abc", "hardware": hardware, "bench": bench, "case": case,
        "metric": metric, "value": value, "spread": "", "command": f"python -m bench.{bench}",
    }  # fmt: skip


def rows_of(lines: list[Mapping[str, str]]) -> dict[str, str]:
    """The figures of the table of targets, by their titles."""
    cells = [x.split(" | ") for x in figures(lines).splitlines() if x.startswith("| ")]
    return {cell[0].removeprefix("| "): cell[3] for cell in cells if len(cell) == 5}


def test_the_page_is_up_to_date() -> None:
    with RESULTS.open(newline="") as file:
        lines = list(csv.DictReader(file))
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(lines, text)


def test_the_rest_of_the_page_is_kept() -> None:
    text = PAGE.read_text(encoding="utf-8")
    new = page([], text)
    assert new != text
    assert "## On two CPU cores" in new
    with pytest.raises(ValueError, match="lacks the line"):
        page([], "# Performance\n")


def test_the_worst_case_of_the_newest_run_counts() -> None:
    found = rows_of([
        line("kernels", "64 pairs, V=151936", "triton, % of a copy", "20"),
        line("kernels", "64 pairs, V=151936", "triton, % of a copy", "92"),
        line("kernels", "256 pairs, V=151936", "triton, % of a copy", "84"),
        line("kernels", "8 pairs, V=151936", "triton, % of a copy", "40"),
        line("kernels", "1 pairs, V=151936", "triton, µs", "9.1"),
        line("kernels", "1 pairs, V=151936", "triton, µs", "8", hardware="2 cores"),
    ])  # fmt: skip
    assert found["kernels, % of the rate of a copy, from 64 pairs at V = 151,936"] == (
        "84, **missed**"
    )
    assert found["one pair at V = 151,936, µs"] == "9.1"


def test_figures_of_a_gpu_are_listed() -> None:
    text = figures([line("kernels", "8 pairs, V=151936", "triton, µs", "30")])
    assert f"## {H100}" in text
    assert "| 8 pairs, V=151936 | triton, µs | 30 |" in text


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.title)
def test_a_target_has_one_bound(target: Target) -> None:
    assert (target.least is None) != (target.most is None)
