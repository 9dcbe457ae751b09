"""Statistics of paired answers: intervals, flips, and where two token sequences part."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Change", "Flips", "change_of_mean", "change_of_share", "entropy", "first_divergence", "flips",
    "mcnemar", "moved_tokens", "quantiles", "tempered", "wilson",
]  # fmt: skip

Z = 1.959963984540054
"""Of a two-sided 95 % interval."""
RESAMPLES = 2000
TEMPERATURES = (0.02, 5.0)
"""Between these `tempered` searches."""


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, JASA 1927); (0, 1) if nothing was counted."""
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    inner = share * (1 - share) / total + square / (4 * total * total)
    half = Z * math.sqrt(inner) / (1 + square / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Args:
        lost: items right before and wrong after.
        won: items wrong before and right after.
    """
    changed = lost + won
    tail = sum(math.comb(changed, k) for k in range(min(lost, won) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


@dataclass(frozen=True, slots=True)
class Flips:
    """What changed from one arm to another (Dutta et al., 2024, arXiv:2407.09141)."""

    lost: int
    """Right before, wrong after."""
    won: int
    """Wrong before, right after."""
    changed: int
    """Another answer, right or wrong."""
    total: int

    @property
    def share(self) -> float:
        """Share of items whose correctness changed."""
        return (self.lost + self.won) / self.total if self.total else 0.0

    @property
    def all(self) -> float:
        """Share of items whose answer changed."""
        return self.changed / self.total if self.total else 0.0

    @property
    def p(self) -> float:
        """`mcnemar` of the two kinds of flips."""
        return mcnemar(self.lost, self.won)


class Change(NamedTuple):
    """A change and its 95 % interval."""

    mean: float
    low: float
    high: float


def flips(before: Sequence[tuple[bool, str]], after: Sequence[tuple[bool, str]]) -> Flips:
    """Compares the answers of two arms to the same items: whether each is right, and its text."""
    pairs = list(zip(before, after, strict=True))
    return Flips(
        lost=sum(a and not b for (a, _), (b, _) in pairs),
        won=sum(b and not a for (a, _), (b, _) in pairs),
        changed=sum(one != other for (_, one), (_, other) in pairs),
        total=len(pairs),
    )


def change_of_share(won: int, lost: int, total: int) -> Change:
    """Of right answers, by Bonett and Price (2012), for the same items before and after."""
    up, down = (won + 1) / (total + 2), (lost + 1) / (total + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (total + 2))
    return Change((won - lost) / total if total else 0.0, up - down - half, up - down + half)


def change_of_mean(before: Sequence[float], after: Sequence[float]) -> Change:
    """Of paired figures, by the percentile bootstrap over the pairs."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    draw = random.Random(0)
    means = sorted(
        sum(draw.choices(changes, k=len(changes))) / len(changes) for _ in range(RESAMPLES)
    )
    cut = RESAMPLES // 40
    return Change(sum(changes) / len(changes), means[cut], means[-1 - cut])


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 90 % and 99 % quantile (nearest rank) and maximum."""
    ranked = sorted(values)

    def at(share: float) -> float:
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    mean = sum(ranked) / len(ranked)
    return {"mean": mean, "50 %": at(0.5), "90 %": at(0.9), "99 %": at(0.99), "max": ranked[-1]}


def first_divergence(base: Sequence[object], other: Sequence[object]) -> int:
    """Number of tokens before the first that differs; the length of `base` if none does.

    For greedy answers this is the FDT of the teacher-forced comparison, for both have the same
    history up to it.
    """
    same = 0
    for one, two in zip(base, other, strict=False):
        if one != two:
            break
        same += 1
    return same


def moved_tokens(base: Sequence[object], other: Sequence[object]) -> int:
    """Tokens of `base` outside the matching blocks of difflib (SDT as OpenVINO's tool counts)."""
    matcher = difflib.SequenceMatcher(None, list(base), list(other), autojunk=False)
    return len(base) - sum(block.size for block in matcher.get_matching_blocks())


def entropy(logprobs: Sequence[float], temperature: float = 1.0) -> float:
    """Entropy in nats of a renormalised list of log-probs, tempered."""
    scaled = [value / temperature for value in logprobs]
    top = max(scaled)
    weights = [math.exp(value - top) for value in scaled]
    total = sum(weights)
    return -sum(w / total * (math.log(w / total)) for w in weights if w > 0)


def tempered(rows: Sequence[Sequence[float]], target: float) -> float | None:
    """The temperature at which the rows have the mean entropy `target`, in nats.

    Args:
        rows: log-probs of the likeliest tokens of each position; each row is renormalised.
        target: mean entropy of the same lists of the method.

    Returns:
        None if no temperature between 0.02 and 5 gives it.
    """
    low, high = TEMPERATURES

    def mean(temperature: float) -> float:
        return sum(entropy(row, temperature) for row in rows) / len(rows)

    if not rows or not mean(low) <= target <= mean(high):
        return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < target else (low, middle)
    return (low + high) / 2
