"""The report of a run: report.json for programs, report.md and a plot for each task for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from divserve import __version__, plots
from divserve.evaluation import cells
from divserve.evaluation.drawing import drawing
from divserve.evaluation.items import Task
from divserve.evaluation.run import Done
from divserve.evaluation.settings import Settings
from divserve.evaluation.table import Row, rows
from divserve.evaluation.verdicts import SIGNIFICANT

__all__ = ["write"]

LEGEND = """\
*helps*, *hurts*: McNemar's p below {significant}; *does nothing*: every answer is the plain one.
Where nothing is judged: *more* or *less diverse* if the 95 % interval of the mean change of
diversity is on one side of 0. *beyond its controls*: p is also below {significant} against each
control. The p-values are those of single comparisons: of {count}, {chance:.1f} would be below
{significant} by chance.

Accuracy with Wilson's 95 % interval. flips: items whose correctness changed against the first row;
won, lost: how many became right and wrong; p: exact McNemar test of these two; all flips: items
whose text changed. FDT: mean tokens before the first that differs; moved: share of the first row's
tokens outside matching blocks. rep-4: share of repeated 4-grams; diversity: Π(1 − rep-n),
n = 2, 3, 4; distinct: share of different texts among the arm's answers. rows: of the batch, per
request; tokens/s: of one request, {parallel} at once, and ÷ the first row's; first token: median
seconds. Later rows find more of their prompts in the prefix cache than the first."""
CONTROLS = """\
Sampled at temperature {temperature:g}, with the same seed for an item in each row. Below a method
are its controls: plain decoding under the method's mask, and plain decoding at the temperature that
gives the method's mean entropy (of the 20 likeliest tokens, renormalised). A method that does not
beat both has shown nothing but its mask or its colder sampling."""
OF_TOKENS = """\
The greedy answers' tokens. applied: share that the account counts as decoded with the method;
swapped: share that plain decoding would not have chosen after the same text; KL: KL(primary‖guide)
in nats, its mean and quantiles; then the means of the method's other figures."""

Tables = Mapping[str, tuple[Sequence[Row], Sequence[Row]]]
"""By task: the rows of the greedy arms and of the sampled ones."""


def write(settings: Settings, done: Done) -> None:
    """Writes the files into the folder of the run."""
    tables = {
        task.name: (
            rows(done, task, done.greedy_of(task)),
            rows(done, task, done.sampled[task.name]),
        )
        for task in done.tasks
    }
    parts = [_head(settings, done, tables)]
    parts += [_section(settings, task, *tables[task.name]) for task in done.tasks]
    whole = {
        "divserve": __version__,
        "origins": [asdict(origin) for origin in done.answers.origins()],
        **settings.fingerprint(done.model),
        "tables": {
            name: {"greedy": [*map(asdict, greedy)], "sampled": [*map(asdict, sampled)]}
            for name, (greedy, sampled) in tables.items()
        },
    }
    (settings.out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (settings.out / "report.json").write_text(json.dumps(whole, indent=2) + "\n")


def _head(settings: Settings, done: Done, tables: Tables) -> str:
    methods = [arm.name for arm in done.greedy[1:]]
    lines = [line for task, both in tables.items() for line in cells.verdicts(task, methods, *both)]
    count = sum(bool(cell) for *_, greedy, sampled in lines for cell in (greedy, sampled))
    legend = LEGEND.format(
        significant=SIGNIFICANT, count=count, chance=SIGNIFICANT * count, parallel=settings.parallel
    )
    origins = "\n".join(f"- {origin}" for origin in done.answers.origins())
    return f"""# {Path(done.model).name}: methods against plain decoding

Made by `divserve eval` {__version__}, seed {settings.seed}:

{origins}

{cells.table(cells.VERDICTS, lines)}

{legend}"""


def _section(settings: Settings, task: Task, greedy: Sequence[Row], sampled: Sequence[Row]) -> str:
    parts = [f"## {task.name}"]
    if plots.is_installed():
        file = f"{task.name}.svg"
        (settings.out / file).write_text(plots.svg(drawing(task.name, greedy, sampled)))
        parts.append(f"![each arm with its interval]({file})")
    if greedy:
        base = greedy[0]
        parts += [f"Greedy, {base.items} items:", cells.answers(greedy)]
        parts += [cells.groups(greedy)] if base.groups else []
        told = cells.of_tokens(greedy)
        parts += [OF_TOKENS, told] if told else []
    if sampled:
        base = sampled[0]
        told = CONTROLS.format(temperature=settings.temperature)
        parts += [f"{told} {base.items} items:", cells.answers(sampled)]
        parts += [cells.groups(sampled)] if base.groups else []
    parts += [
        f"{row.arm}: {row.plainly} of {row.items} items have no document and were decoded plainly."
        for row in (*greedy, *sampled)
        if row.plainly
    ]
    return "\n\n".join(parts)
