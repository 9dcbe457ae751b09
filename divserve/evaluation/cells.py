"""The rows of a task as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from divserve.evaluation.table import Group, Row
from divserve.evaluation.verdicts import beside_controls, verdict

__all__ = ["VERDICTS", "answers", "groups", "of_tokens", "table", "verdicts"]

VERDICTS = ("task", "method", "plain → method, greedy", "won, lost", "p", "greedy", "sampled")
ANSWERS = (
    "", "accuracy (95 %)", "flips", "won, lost", "p", "all flips", "FDT", "moved", "rep-4",
    "diversity", "distinct", "tokens", "rows", "tokens/s", "first token",
)  # fmt: skip
CONTROLS = "method against it: won, lost, p"
OF_TOKENS = ("", "applied", "swapped", "KL", "50 %", "90 %", "99 %", "max", "means")


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table with a line for each sequence of cells."""
    every = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in every)


def verdicts(
    task: str, methods: Sequence[str], greedy: Sequence[Row], sampled: Sequence[Row]
) -> list[tuple[str, ...]]:
    """A line of `VERDICTS` for each method.

    Args:
        task: its name.
        methods: in the order of the rows.
        greedy: plain decoding and the methods; may be empty.
        sampled: likewise, with the controls.
    """
    alone = [row for row in sampled if row.control is None]
    lines: list[tuple[str, ...]] = []
    for place, method in enumerate(methods, 1):
        told = beside_controls(alone[place], sampled) if alone else ""
        if not greedy:
            lines.append((task, method, "", "", "", "", told))
            continue
        row, judged = greedy[place], greedy[place].accuracy is not None
        change = f"{_value(greedy[0])} → {_value(row)}"
        counts = (f"{row.won}, {row.lost}", f"{row.p:.3f}") if judged else ("", "")
        lines.append((task, method, change, *counts, verdict(row), told))
    return lines


def answers(rows: Sequence[Row]) -> str:
    """What the answers of each arm add up to."""
    controls = any(row.control for row in rows)
    return table(
        (*ANSWERS, CONTROLS) if controls else ANSWERS,
        ((*_cells(row), _control(row)) if controls else _cells(row) for row in rows),
    )


def groups(rows: Sequence[Row]) -> str:
    """Right answers by group; and won, lost and p against the first row."""
    lines = [
        (row.arm, *(_group(one, first=row is rows[0]) for one in row.groups.values()))
        for row in rows
    ]
    return table(("right (won, lost, p)", *rows[0].groups), lines)


def _group(group: Group, first: bool) -> str:
    right = f"{group.right} of {group.judged}"
    return right if first else f"{right} ({group.won}, {group.lost}, {group.p:.3f})"


def of_tokens(rows: Sequence[Row]) -> str:
    """What the accounts and traces of the methods say; empty if there are none."""
    lines = [_of_tokens(row) for row in rows if row.applied is not None]
    return table(OF_TOKENS, lines) if lines else ""


def _of_tokens(row: Row) -> tuple[str, ...]:
    kl = [f"{value:.3f}" for value in row.kl.values()] if row.kl else [""] * 5
    means = ", ".join(f"{k} {v:.3f}" for k, v in row.means.items() if k != "kl")
    return (row.arm, f"{row.applied:.1%}", _share(row.swapped), *kl, means)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _value(row: Row) -> str:
    """Accuracy, or diversity where nothing is judged."""
    return f"{row.diversity:.3f}" if row.accuracy is None else f"{row.accuracy:.1%}"


def _control(row: Row) -> str:
    control = row.control
    if control is None or row.accuracy is None:
        return ""
    return f"{control.won}, {control.lost}, {control.p:.3f}"


def _cells(row: Row) -> tuple[str, ...]:
    judged = row.accuracy is not None
    return (
        row.arm,
        f"{row.accuracy:.1%} ({row.low:.1%}–{row.high:.1%})" if judged else "",
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
        f"{row.rows:.2f}",
        f"{row.tokens_per_s:.1f} (× {row.speed:.2f})",
        f"{row.first_s:.3f}",
    )
