"""The columns of the report: what each arm's answers add up to."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from divserve.evaluation.answers import Answer
from divserve.evaluation.arms import Arm
from divserve.evaluation.items import Task
from divserve.evaluation.run import Done
from divserve.evaluation.statistics import (
    Change,
    Flips,
    change_of_mean,
    change_of_share,
    first_divergence,
    flips,
    moved_tokens,
    quantiles,
    wilson,
)
from divserve.evaluation.texts import distinct, diversity, rep

__all__ = ["Control", "Group", "Row", "rows"]


@dataclass(frozen=True, slots=True)
class Control:
    """A method against one of its controls, on the same items."""

    of: str
    """The method's arm."""
    won: int
    """Items that the method has right and the control wrong."""
    lost: int
    p: float
    """Of McNemar's test."""


@dataclass(frozen=True, slots=True)
class Group:
    """A part of the items, against the same part of the first arm."""

    right: int
    judged: int
    won: int
    lost: int
    p: float


@dataclass(frozen=True, slots=True)
class Row:
    """An arm against the first arm of its table."""

    arm: str
    control: Control | None
    """In the row of a control."""
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
    change: Change
    """Of the accuracy against the first arm; where nothing is judged, of the mean diversity."""
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
    speed: float
    """Its tokens per second ÷ those of the first arm."""
    first_s: float
    """Median time to the first token."""
    applied: float | None
    """Share of a method's tokens that its account counts as decoded with it; 1 where it holds."""
    swapped: float | None
    """Share of a method's tokens that are not the primary's likeliest after the same text."""
    means: dict[str, float]
    """The account's figures, averaged over the tokens (divergences and entropies in nats)."""
    kl: dict[str, float] | None
    """Mean, quantiles and maximum of KL(primary‖guide) over the tokens, nats."""
    groups: dict[str, Group]


def rows(done: Done, task: Task, arms: Sequence[Arm]) -> list[Row]:
    """One row for each arm; the first arm is what the others are compared with."""
    answers = {arm.name: done.of(task, arm) for arm in arms}
    base = next(iter(answers.values()), [])
    return [
        _row(task, arm, base, answers[arm.name], _control(arm.control_of, answers, arm.name))
        for arm in arms
    ]


def _control(
    method: str | None, answers: Mapping[str, Sequence[Answer]], control: str
) -> Control | None:
    if method is None:
        return None
    found = flips(_marks(answers[control]), _marks(answers[method]))
    return Control(method, found.won, found.lost, found.p)


def _marks(answers: Sequence[Answer]) -> list[tuple[bool, str]]:
    return [(bool(answer.right), answer.text) for answer in answers]


def _row(
    task: Task, arm: Arm, base: Sequence[Answer], own: Sequence[Answer], control: Control | None
) -> Row:
    marks = [answer.right for answer in own if answer.right is not None]
    low, high = wilson(sum(marks), len(marks))
    changed = flips(_marks(base), _marks(own))
    speed, plain_speed = _speed(own), _speed(base)
    kls = [kl for answer in own for kl in answer.kls]
    return Row(
        arm=arm.name,
        control=control,
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
        change=_change(base, own, changed),
        **_texts(base, own),
        rows=_mean([answer.rows for answer in own]),
        tokens_per_s=speed,
        speed=speed / plain_speed if plain_speed else 0.0,
        first_s=statistics.median(answer.first_s for answer in own),
        applied=_share([(answer.applied, answer.tokens) for answer in own if answer.guided]),
        swapped=_share([(answer.swapped, answer.tokens) for answer in own]),
        means=_means(own),
        kl=quantiles(kls) if kls else None,
        groups=_groups(task, base, own),
    )


def _change(base: Sequence[Answer], own: Sequence[Answer], changed: Flips) -> Change:
    if any(answer.right is not None for answer in own):
        return change_of_share(changed.won, changed.lost, changed.total)
    return change_of_mean(*([diversity(one.tokens) for one in side] for side in (base, own)))


def _texts(base: Sequence[Answer], own: Sequence[Answer]) -> dict[str, Any]:
    """The columns about the tokens themselves."""
    pairs = [(a.tokens, b.tokens) for a, b in zip(base, own, strict=True) if a.tokens]
    tokens = [answer.tokens for answer in own]
    return {
        "first_divergence": _mean([first_divergence(a, b) for a, b in pairs]),
        "first_share": _mean([first_divergence(a, b) / len(a) for a, b in pairs]),
        "moved_share": _mean([moved_tokens(a, b) / len(a) for a, b in pairs]),
        **{f"rep_{n}": _mean([rep(one, n) for one in tokens]) for n in (2, 3, 4)},
        "diversity": _mean([diversity(one) for one in tokens]),
        "distinct": distinct([answer.text for answer in own]),
        "tokens": _mean([len(one) for one in tokens]),
    }


def _speed(answers: Sequence[Answer]) -> float:
    """Tokens per second of one request."""
    seconds = sum(answer.seconds for answer in answers)
    return sum(len(answer.tokens) for answer in answers) / seconds if seconds else 0.0


def _share(counted: Sequence[tuple[int | None, Sequence[int]]]) -> float | None:
    """Of the tokens of those that were counted; None if there are none."""
    known = [(count, len(tokens)) for count, tokens in counted if count is not None]
    total = sum(length for _, length in known)
    return sum(count for count, _ in known) / total if total else None


def _means(own: Sequence[Answer]) -> dict[str, float]:
    """Each figure of the accounts, weighted by the tokens of each answer."""
    found = {}
    for name in sorted({name for answer in own for name in answer.means}):
        known = [(one.means[name], len(one.tokens)) for one in own if name in one.means]
        total = sum(length for _, length in known)
        found[name] = sum(mean * length for mean, length in known) / total if total else 0.0
    return found


def _groups(task: Task, base: Sequence[Answer], own: Sequence[Answer]) -> dict[str, Group]:
    group_of = {item.id: item.group for item in task.items}
    found = {}
    for name in sorted({group_of[answer.item] for answer in own} - {""}):
        before, after = (
            [one for one in side if group_of[one.item] == name] for side in (base, own)
        )
        changed = flips(_marks(before), _marks(after))
        marks = [one.right for one in after if one.right is not None]
        found[name] = Group(sum(marks), len(marks), changed.won, changed.lost, changed.p)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
