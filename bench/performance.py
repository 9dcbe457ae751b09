"""Writes the targets in docs/performance.md, and what each machine reaches, from bench/results.csv.

python -m bench.performance
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.record import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
GPU = "NVIDIA"
"""With this the name of a GPU begins."""
BEGIN, END = "<!-- Written by python -m bench.performance: -->", "<!-- Written by hand: -->"
"""What this module writes is between these lines of the page."""


@dataclass(frozen=True)
class Target:
    """A figure that has to be reached."""

    title: str
    on_gpu: bool
    bench: str
    case: str
    """Regular expression of the cases that it covers."""
    metric: str
    """Regular expression of the metric."""
    least: float | None = None
    most: float | None = None

    @property
    def bound(self) -> str:
        """The target as text."""
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"

    def covers(self, line: Mapping[str, str]) -> bool:
        """Whether it is about a line of the results."""
        return (
            line["bench"] == self.bench
            and line["hardware"].startswith(GPU) == self.on_gpu
            and re.fullmatch(self.case, line["case"]) is not None
            and re.fullmatch(self.metric, line["metric"]) is not None
        )

    def worst(self, lines: Iterable[Mapping[str, str]]) -> Mapping[str, str]:
        """The line that is furthest from the target."""
        choose = min if self.least is not None else max
        return choose(lines, key=lambda line: float(line["value"]))

    def met(self, value: float) -> bool:
        """Whether a value reaches it."""
        return value >= self.least if self.least is not None else value <= (self.most or 0)


LARGE = r"(1\.5b|8b), .*\b(8|32|64) pairs.*"
TARGETS = (
    Target(
        "kernels, % of the rate of a copy, from 64 pairs at V = 151,936",
        True,
        "kernels",
        r"(64|128|256) pairs, V=151936",
        "triton, % of a copy",
        least=85,
    ),
    Target(
        "one pair at V = 151,936, µs",
        True,
        "kernels",
        "1 pairs, V=151936",
        "triton, µs",
        most=12,
    ),
    Target(
        "guided ÷ plain, 1.5B and 8B, 8 to 64 pairs",
        True,
        "lockstep",
        LARGE,
        "guided / plain",
        least=0.97,
    ),
    Target(
        "plain requests ÷ stock vLLM, the same",
        True,
        "lockstep",
        LARGE,
        "plain / stock",
        least=0.99,
    ),
    Target(
        "look-back: time between tokens ÷ without",
        True,
        "look_back",
        "itl: .*",
        "look_back / bare",
        most=1.05,
    ),
    Target(
        "contrastive ÷ (expert + amateur)",
        True,
        "two_models",
        ".*amateur.*",
        r"contrastive / \(expert \+ amateur\)",
        most=1.05,
    ),
    Target(
        "guided ÷ plain, SmolLM2, 8 pairs",
        False,
        "lockstep",
        "smollm2, .*",
        "guided / plain",
        least=0.95,
    ),
    Target(
        "plain requests ÷ stock vLLM, the same",
        False,
        "lockstep",
        "smollm2, .*",
        "plain / stock",
        least=0.99,
    ),
    Target(
        "share of a step in divserve's code",
        False,
        "step_overhead",
        "smollm2, .*",
        "share of a step",
        most=0.05,
    ),
    Target(
        "(expert + amateur) ÷ contrastive",
        False,
        "two_models",
        "smollm2, amateur.*",
        r"\(expert \+ amateur\) / contrastive",
        least=0.9,
    ),
    Target(
        "scoring a text ÷ prefill, SmolLM2", False, "score", "smollm2, .*", "score / prefill", 0.8
    ),
    *(
        Target(
            f"guided with drafts ÷ {other}: {title}",
            False,
            "speculation",
            f"smollm2, {case}, .*adacad, greedy",
            f"guided \\+ lookup / {other}, wall",
            most=most,
        )
        for title, case, other, most in (
            ("copying, 1 request", "copying, 1 (at once|always)", "plain", 0.45),
            (
                "extractive questions, 1 request",
                "extractive questions, 1 (at once|always)",
                "plain",
                0.7,
            ),
            ("any task, 1 to 16 requests", r".*, (1 at once|\d+ always)", "guided", 1.03),
        )
    ),
)


def newest(lines: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The last figure of each case, metric and hardware."""
    found = {(x["bench"], x["hardware"], x["case"], x["metric"]): x for x in lines}
    return list(found.values())


def target_rows(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """A line of the table for each target."""
    rows = []
    for target in TARGETS:
        covered = [line for line in lines if target.covers(line)]
        place = "GPU" if target.on_gpu else "CPU"
        if not covered:
            rows.append(f"| {target.title} | {place} | {target.bound} | not measured yet | |")
            continue
        latest = [line for line in covered if line["hardware"] == covered[-1]["hardware"]]
        worst = target.worst(latest)
        verdict = "" if target.met(float(worst["value"])) else ", **missed**"
        where = f"{worst['hardware']}, {worst['date']}, {worst['commit']}"
        rows.append(
            f"| {target.title} | {place} | {target.bound} | {worst['value']}{verdict} | {where} |"
        )
    return rows


def sections(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """Every figure of every GPU, a table for each bench."""
    found = []
    for hardware in dict.fromkeys(x["hardware"] for x in lines if x["hardware"].startswith(GPU)):
        found += ["", f"## {hardware}"]
        own = [line for line in lines if line["hardware"] == hardware]
        for bench in dict.fromkeys(line["bench"] for line in own):
            of_bench = [line for line in own if line["bench"] == bench]
            found += ["", f"`{of_bench[-1]['command']}`", ""]
            found += ["| case | metric | median | range |", "|---|---|--:|---|"]
            found += [
                f"| {line['case']} | {line['metric']} | {line['value']} | {line['spread']} |"
                for line in of_bench
            ]
    return found


def figures(lines: Sequence[Mapping[str, str]]) -> str:
    """The part of the page that is written here."""
    last = newest(lines)
    table = [
        "| target | on | | figure | measured on |",
        "|---|---|---|---|---|",
        *target_rows(last),
    ]
    return "\n".join([*table, *sections(last)]) + "\n"


def page(lines: Sequence[Mapping[str, str]], old: str) -> str:
    """The page with new figures.

    Raises:
        ValueError: the old page lacks one of the lines `BEGIN` and `END`.
    """
    head, begin, rest = old.partition(f"{BEGIN}\n\n")
    _, end, tail = rest.partition(f"\n{END}")
    if not (begin and end):
        raise ValueError(f"{PAGE.name} lacks the line {BEGIN!r} or {END!r}")
    return f"{head}{begin}{figures(lines)}{end}{tail}"


def main() -> None:
    """Write the page."""
    with RESULTS.open(newline="") as file:
        lines = list(csv.DictReader(file))
    PAGE.write_text(page(lines, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
