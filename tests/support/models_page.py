"""docs/models.md: what is proven for which models and modes, and what is refused.

A test that proves something calls `record` with a `Row`; with ``RECORD_MODELS=1`` in the
environment this goes into ``tests/data/models.json`` in place of the row of the same kind and name.
Then ``python -m tests.support.models_page`` writes the page; commit both.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from divserve.startup.refused import AMATEUR, ARGUMENTS, CONFIG, LOOK_BACK, Refusal

__all__ = ["KINDS", "PAGE", "RECORD", "ROWS", "Row", "page", "record", "rows"]

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "tests" / "data" / "models.json"
PAGE = ROOT / "docs" / "models.md"
RECORD = "RECORD_MODELS"
"""Environment variable: tests write what they have found."""

KINDS = {
    "architecture": "Architectures",
    "quantisation": "Quantised weights",
    "adapters": "Adapters (LoRA)",
    "parallel": "Several processes",
    "transfer": "KV transfer",
    "hosts": "Several hosts",
}
"""Kinds of rows and the titles of their tables, in the order of the page."""
TABLES: dict[str, tuple[Refusal, ...]] = {
    "Server modes": ARGUMENTS,
    "Engine modes": CONFIG,
    "With `--look-back`": LOOK_BACK,
    "With `--amateur`": AMATEUR,
}
INTRODUCTION = """\
# Models and modes

`python -m tests.support.models_page` writes this page from `tests/data/models.json`, which tests
write with `RECORD_MODELS=1`, and from the tables of `divserve/startup/refused`.

Each model is a tiny one with random weights of the architecture, made by the test. Guided and plain
requests of many lengths run in one batch, and every log-prob of the five likeliest tokens is
compared with those of a reference that decodes each request by itself. *Two rounds* means that the
same batch runs twice, the second time with prefix cache hits; *preempting* means a KV cache too
small for the batch; *asynchronous* means that steps are scheduled ahead. The largest difference is
in nats. Models that are not listed are neither refused nor proven.

All of this ran on a CPU, and nothing on this page has run on CUDA yet.
"""


@dataclass(frozen=True)
class Row:
    """One line of a table of the page."""

    kind: str
    """One of `KINDS`."""
    name: str
    checked: str = ""
    """What was compared; empty if nothing could be judged."""
    on: str = ""
    """Dtype, model runner, device, and whatever else matters."""
    reference: str = ""
    worst: float | None = None
    """Largest difference of a log-prob in nats; None where only tokens are compared."""
    why: str = ""
    """Why it is not judged, or a remark."""

    def line(self) -> str:
        """The line of the table."""
        worst = "" if self.worst is None else f"{self.worst:.0e}"
        cells = (self.name, self.checked or "not judged", self.on, self.reference, worst, self.why)
        return f"| {' | '.join(cells)} |"


def rows(path: Path = ROWS) -> list[Row]:
    """All rows of the file."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def record(row: Row, path: Path = ROWS) -> None:
    """Writes a row in place of that of the same kind and name, if the environment asks for it."""
    if os.environ.get(RECORD, "0") in ("", "0"):
        return
    with path.open("r+", encoding="utf-8") as file:
        # Several processes of pytest may record at the same time.
        fcntl.flock(file, fcntl.LOCK_EX)
        found = {(one["kind"], one["name"]): one for one in json.load(file)}
        found[row.kind, row.name] = asdict(row)
        file.seek(0)
        file.truncate()
        file.write(_dumped(found.values()))


def _dumped(found: Iterable[dict[str, object]]) -> str:
    """One line for each row, so that several branches can add some."""
    kinds = list(KINDS)
    in_order = sorted(found, key=lambda row: (kinds.index(str(row["kind"])), str(row["name"])))
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in in_order)
    return f"[\n{lines}\n]\n"


def page(found: Sequence[Row]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for kind, title in KINDS.items():
        if lines := [row.line() for row in found if row.kind == kind]:
            parts += [
                f"## {title}\n",
                "| model or mode | checked | on | reference | largest difference | remark |",
                "|---|---|---|---|---|---|",
                *lines,
                "",
            ]
    parts += ["## What is refused\n", "Each of these stops the start, with its name and reason.\n"]
    for title, table in TABLES.items():
        parts += [f"### {title}\n", "| mode | reason |", "|---|---|"]
        parts += [*(f"| {mode.name} | {mode.why} |" for mode in table), ""]
    return "\n".join(parts).rstrip() + "\n"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(rows()), encoding="utf-8")


if __name__ == "__main__":
    main()
