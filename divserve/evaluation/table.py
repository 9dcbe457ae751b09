"""The columns of the report: what each arm's answers add up to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from divserve.evaluation.answers import Answer
from divserve.evaluation.arms import Arm
from divserve.evaluation.items import Task
from divserve.evaluation.run import Done
from divserve.evaluation.statistics import first_divergence, flips, moved_tokens, wilson
from divserve.evaluation.texts import distinct, diversity, rep

__all__ = ["Row", "rows", "verdict"]

SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """An arm against the first arm of its table."""

    arm: str
    control_of: str | None
    items: int
    plainly: int
    """Items of a method's arm that had nothing to leave out and were decoded plainly."""
    judged: int
    right: int
    accuracy: float | None
    low: float
    high: float
    """95 % interval of the accuracy."""
    lost: int
    won: int
    flips: float
    all_flips: float
    p: float
    first_divergence: float
    """Mean number of tokens before the first that differs (FDT)."""
    first_share: float
    """The mean of FDT ÷ length."""
    moved_share: float
    """Share of the plain tokens outside matching blocks."""
    rep_2: float
    rep_3: float
    rep_4: float
    diversity: float
    distinct: float
    """Share of the arm's texts that differ from each other."""
    tokens: float
    """Mean length."""
    rows: float
    tokens_per_s: float
    """Of one request, with as many at once as the run had."""
    first_s: float
    """Median time to the first token."""
    kl: float | None
    """The account's mean KL(primary‖guide), nats."""
    groups: dict[str, tuple[int, int]]
    """Right and judged items by group."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def rows(done: Done, task: Task, arms: Sequence[Arm]) -> list[Row]:
    """One row for each arm; the first arm is what the others are compared with."""
    base = done.of(task, arms[0]) if arms else []
    return [_row(task, arm, base, done.of(task, arm)) for arm in arms]


def verdict(row: Row) -> str:
    """One word on a method: what its answers show against plain decoding."""
    if row.accuracy is None:
        return "not judged"
    if row.p < SIGNIFICANT:
        return "helps" if row.won > row.lost else "hurts"
    return "does nothing" if row.all_flips == 0 else "no difference shown"


def _row(task: Task, arm: Arm, base: Sequence[Answer], own: Sequence[Answer]) -> Row:
    marks = [answer.right for answer in own if answer.right is not None]
    low, high = wilson(sum(marks), len(marks))
    changed = flips(
        [(bool(answer.right), answer.text) for answer in base],
        [(bool(answer.right), answer.text) for answer in own],
    )
    pairs = [(a.tokens, b.tokens) for a, b in zip(base, own, strict=True) if a.tokens]
    tokens = [answer.tokens for answer in own]
    kls = [answer.means["kl"] for answer in own if "kl" in answer.means]
    seconds = sum(answer.seconds for answer in own)
    return Row(
        arm=arm.name,
        control_of=arm.control_of,
        items=len(own),
        plainly=sum(not answer.guided for answer in own) if arm.decoding else 0,
        judged=len(marks),
        right=sum(marks),
        accuracy=sum(marks) / len(marks) if marks else None,
        low=low,
        high=high,
        lost=changed.lost,
        won=changed.won,
        flips=changed.share,
        all_flips=changed.all,
        p=changed.p,
        first_divergence=_mean([first_divergence(a, b) for a, b in pairs]),
        first_share=_mean([first_divergence(a, b) / len(a) for a, b in pairs]),
        moved_share=_mean([moved_tokens(a, b) / len(a) for a, b in pairs]),
        rep_2=_mean([rep(one, 2) for one in tokens]),
        rep_3=_mean([rep(one, 3) for one in tokens]),
        rep_4=_mean([rep(one, 4) for one in tokens]),
        diversity=_mean([diversity(one) for one in tokens]),
        distinct=distinct([answer.text for answer in own]),
        tokens=_mean([len(one) for one in tokens]),
        rows=_mean([answer.rows for answer in own]),
        tokens_per_s=sum(map(len, tokens)) / seconds if seconds else 0.0,
        first_s=statistics.median(answer.first_s for answer in own),
        kl=_mean(kls) if kls else None,
        groups=_groups(task, own),
    )


def _groups(task: Task, own: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    group_of = {item.id: item.group for item in task.items}
    names = sorted({group_of[answer.item] for answer in own} - {""})
    found = {}
    for name in names:
        marks = [a.right for a in own if group_of[a.item] == name and a.right is not None]
        found[name] = (sum(marks), len(marks))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
