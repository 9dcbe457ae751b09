"""Whether a server stays steady: memory over time, and latencies in the last third of a test.

The first tenth is a warm-up and is left out of everything. The rest is divided into thirds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from loadtest.figures import Run
from loadtest.monitor import Reading

__all__ = ["Change", "Slope", "changes", "slope"]

WARM_UP = 0.1
THIRDS = ((0.1, 0.4), (0.7, 1.0))
"""The first and the last third after the warm-up, as shares of the test."""
BLOCKS = 20
"""Requests at the same time are not independent, so the bootstrap draws blocks of time: this many
per third."""
RESAMPLES = 300
POINTS = 200
"""A line is fitted to at most this many medians; Theil–Sen uses every pair of them."""
DRIFTS = ("ttft", "itl", "e2e")
HOUR_S = 3600


@dataclass(frozen=True)
class Change:
    """A figure in the first and the last third."""

    name: str
    first: float
    last: float
    low: float = math.nan
    """The 95 % interval of `share`: if it contains 0, the change may be chance. NaN if there is no
    interval."""
    high: float = math.nan

    @property
    def share(self) -> float:
        """Its growth, as a share of the first third."""
        return self.last / self.first - 1 if self.first else math.nan


@dataclass(frozen=True)
class Slope:
    """A line fitted to memory over time (Theil–Sen: the median of the slopes of all pairs)."""

    mb_per_hour: float
    low: float
    """The 95 % interval, which assumes independent readings: too narrow for memory that moves in
    steps."""
    high: float
    share_per_hour: float
    """Slope as a share of the memory that the server holds."""


def slope(run: Run) -> Slope | None:
    """How memory grows after the warm-up; None if there are no readings."""
    points = _points(run, "memory", WARM_UP, 1)
    if len(points) < 3:
        return None
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    hours = [statistics.median(at for at, _ in group) / HOUR_S for group in groups]
    sizes = [statistics.median(value for _, value in group) for group in groups]
    if len(groups) < 3:
        return None
    rise, _, low, high = stats.theilslopes(sizes, hours, alpha=0.95)
    return Slope(float(rise), float(low), float(high), float(rise) / statistics.median(sizes))


def changes(run: Run) -> list[Change]:
    """p99 of each of `DRIFTS`, then memory and open files, where there are values."""
    found = []
    for latency in DRIFTS:
        first, last = ([*_blocks(run, latency, *third)] for third in THIRDS)
        if len(first) > 1 and len(last) > 1:
            found.append(_drift(f"{latency.upper()} p99 ms", first, last))
    for name, label in (("memory", "memory MB"), ("files", "open files")):
        sides = [[value for _, value in _points(run, name, *third)] for third in THIRDS]
        if all(sides):
            found.append(Change(label, *(statistics.median(side) for side in sides)))
    return found


def _points(run: Run, name: str, begin: float, end: float) -> list[tuple[float, float]]:
    """Seconds of the test and the value of a reading, within shares of the test."""

    def at(reading: Reading) -> float:
        return reading.at - float(run.about["began"])

    found = [(at(one), getattr(one, name)) for one in run.readings]
    low, high = begin * run.seconds, end * run.seconds
    return [(at, float(value)) for at, value in found if value is not None and low <= at < high]


def _blocks(run: Run, latency: str, begin: float, end: float) -> list[np.ndarray]:
    """The latencies of a part of the test in milliseconds, by block of time (without empty
    ones)."""
    low, width = begin * run.seconds, (end - begin) * run.seconds
    found: list[list[float]] = [[] for _ in range(BLOCKS)]
    for at, value in run.points(latency, run.samples):
        if 0 <= (place := (at - low) / width) < 1:
            found[int(place * BLOCKS)].append(1e3 * value)
    return [np.array(block) for block in found if block]


def _drift(name: str, first: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> Change:
    """The change of the 99th percentile, with its bootstrap interval over blocks."""

    def p99(blocks: Sequence[np.ndarray]) -> float:
        return float(np.quantile(np.concatenate(blocks), 0.99))

    def ratio(ones: np.ndarray, others: np.ndarray) -> float:
        return p99([last[int(i)] for i in others]) / p99([first[int(i)] for i in ones]) - 1

    drawn = stats.bootstrap(
        (np.arange(len(first)), np.arange(len(last))),
        ratio,
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Change(name, p99(first), p99(last), float(drawn.low), float(drawn.high))
