"""The report of a run: report.json for programs, report.md and a plot for each task for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divserve import __version__, plots
from divserve.evaluation.drawing import drawing
from divserve.evaluation.items import Task
from divserve.evaluation.run import Done
from divserve.evaluation.settings import Settings
from divserve.evaluation.table import Row, rows, verdict

__all__ = ["write"]

COLUMNS = (
    "", "accuracy (95 %)", "flips", "won, lost", "p", "all flips", "FDT", "moved", "rep-4",
    "diversity", "distinct", "tokens", "KL", "rows", "tokens/s", "first token",
)  # fmt: skip
LEGEND = """\
Accuracy with Wilson's 95 % interval. flips: items whose correctness changed against the first row;
won, lost: how many became right and wrong; p: exact McNemar test of these two; all flips: items
whose text changed. FDT: mean tokens before the first that differs; moved: share of the first row's
tokens outside matching blocks. rep-4: share of repeated 4-grams; diversity: Π(1 − rep-n),
n = 2, 3, 4; distinct: share of different texts among the arm's answers. KL: mean KL(primary‖guide)
of the account, nats. rows: of the batch, per request; tokens/s: of one request, {parallel} at once;
first token: median seconds."""
CONTROLS = """\
Sampled at temperature {temperature:g}, with the same seed for an item in each row. Below a method
are its controls: plain decoding under the method's mask, and plain decoding at the temperature that
gives the method's mean entropy (of the 20 likeliest tokens, renormalised). A method that does not
beat both has shown nothing but its mask or its colder sampling."""


def write(settings: Settings, done: Done, hardware: str, commit: str | None) -> None:
    """Writes the files into the folder of the run."""
    tables = {
        task.name: (rows(done, task, done.greedy), rows(done, task, done.sampled[task.name]))
        for task in done.tasks
    }
    parts = [_head(settings, done, hardware, commit)]
    parts += [_section(settings, task, *tables[task.name]) for task in done.tasks]
    whole = {
        "divserve": __version__,
        "commit": commit,
        "hardware": hardware,
        **settings.fingerprint(done.model),
        "tables": {
            name: {"greedy": _plain(greedy), "sampled": _plain(sampled)}
            for name, (greedy, sampled) in tables.items()
        },
    }
    (settings.out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (settings.out / "report.json").write_text(json.dumps(whole, indent=2) + "\n")


def _plain(table: Sequence[Row]) -> list[dict[str, Any]]:
    return [row.plain() for row in table]


def _head(settings: Settings, done: Done, hardware: str, commit: str | None) -> str:
    verdicts = []
    for task in done.tasks:
        base, *others = rows(done, task, done.greedy)
        told = [f"{row.arm} {verdict(row)}" for row in others]
        verdicts.append((task.name, str(base.items), _accuracy(base), "; ".join(told)))
    at = f", commit {commit}" if commit else ""
    return f"""# {Path(done.model).name}: methods against plain decoding

Made by `divserve eval` {__version__}{at} on {hardware}; seed {settings.seed}.

{_table(("task", "items", "plain, greedy", "greedy answers"), verdicts)}

*helps*, *hurts*: McNemar's p below 0.05. *does nothing*: every answer is the plain one.

{LEGEND.format(parallel=settings.parallel)}"""


def _section(settings: Settings, task: Task, greedy: Sequence[Row], sampled: Sequence[Row]) -> str:
    parts = [f"## {task.name}"]
    if plots.is_installed():
        file = f"{task.name}.svg"
        (settings.out / file).write_text(plots.svg(drawing(task.name, greedy, sampled)))
        parts.append(f"![accuracy of each arm with its interval]({file})")
    parts += ["Greedy:", _table(COLUMNS, map(_cells, greedy))]
    if any(row.groups for row in greedy):
        parts.append(_groups(greedy))
    if sampled:
        told = CONTROLS.format(temperature=settings.temperature)
        parts += [told, _table(COLUMNS, map(_cells, sampled))]
    plainly = [row for row in greedy if row.plainly]
    parts += [
        f"{row.arm}: {row.plainly} of {row.items} items have no document and were decoded plainly."
        for row in plainly
    ]
    return "\n\n".join(parts)


def _groups(table: Sequence[Row]) -> str:
    names = list(table[0].groups)
    cells = [(row.arm, *(f"{r} of {n}" for r, n in row.groups.values())) for row in table]
    return _table(("right, greedy", *names), cells)


def _accuracy(row: Row) -> str:
    if row.accuracy is None:
        return ""
    return f"{row.accuracy:.1%} ({row.low:.1%}–{row.high:.1%})"


def _cells(row: Row) -> tuple[str, ...]:
    judged = row.accuracy is not None
    return (
        row.arm,
        _accuracy(row),
        f"{row.flips:.1%}" if judged else "",
        f"{row.won}, {row.lost}" if judged else "",
        f"{row.p:.3f}" if judged else "",
        f"{row.all_flips:.1%}",
        f"{row.first_divergence:.1f}",
        f"{row.moved_share:.1%}",
        f"{row.rep_4:.3f}",
        f"{row.diversity:.3f}",
        f"{row.distinct:.3f}",
        f"{row.tokens:.1f}",
        "" if row.kl is None else f"{row.kl:.3f}",
        f"{row.rows:.2f}",
        f"{row.tokens_per_s:.1f}",
        f"{row.first_s:.3f}",
    )


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
