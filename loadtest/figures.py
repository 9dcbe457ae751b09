"""Percentiles, goodput and series over time, from samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.mix import PLAIN
from loadtest.monitor import Reading
from loadtest.sample import Sample

__all__ = ["LATENCIES", "Run", "Summary", "percentile"]

LATENCIES = ("ttft", "itl", "tpot", "e2e", "rejected")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, interpolated; NaN if there are none."""
    return float(np.quantile(values, share)) if values else math.nan


@dataclass(frozen=True)
class Summary:
    """Figures of a group of requests; times in seconds."""

    name: str
    asked: int
    ok: int
    failed: int
    rejected: int
    tokens_per_s: float
    """Tokens that arrived during the test; answers still in progress at its end finish later."""
    goodput: float
    """Share of all requests, even failed and rejected ones, that were answered within the SLO."""
    good_per_s: float
    latencies: dict[str, list[float]]

    def at(self, latency: str, share: float) -> float:
        """A percentile of one of `LATENCIES`."""
        return percentile(self.latencies[latency], share)


@dataclass(frozen=True)
class Run:
    """A load test: its options and its results."""

    about: dict[str, Any]
    samples: list[Sample]
    readings: list[Reading] = field(default_factory=list)
    """Readings of the server, by time."""

    @property
    def seconds(self) -> float:
        """Length of the test."""
        return float(self.about["seconds"])

    @property
    def slo(self) -> tuple[float, float]:
        """Limits of TTFT and TPOT, in seconds."""
        return float(self.about["slo_ttft"]) / 1e3, float(self.about["slo_tpot"]) / 1e3

    @property
    def rate(self) -> float:
        """Requests per second, sent without waiting for answers; 0: users wait for answers."""
        return float(self.about.get("rate", 0))

    def group(self, name: str) -> list[Sample]:
        """``all``, ``plain``, ``guided``, or the requests of one method."""
        if name == "guided":
            return [one for one in self.samples if one.kind != PLAIN]
        return [one for one in self.samples if name in ("all", one.kind)]

    def summaries(self) -> list[Summary]:
        """Summaries of every group that has requests, the methods by name."""
        kinds = sorted({one.kind for one in self.samples} - {PLAIN})
        names = ["all", PLAIN, "guided", *kinds]
        return [self._summary(name) for name in names if self.group(name)]

    def _summary(self, name: str) -> Summary:
        samples = self.group(name)
        answered = [one for one in samples if one.outcome == "ok"]
        rejected = [one.took for one in samples if one.outcome == "rejected"]
        good = sum(one.meets(*self.slo) for one in samples)
        tokens = sum(count for at, count in self.arrivals(samples) if at < self.seconds)
        return Summary(
            name=name,
            asked=len(samples),
            ok=len(answered),
            failed=sum(one.outcome == "failed" for one in samples),
            rejected=len(rejected),
            tokens_per_s=tokens / self.seconds,
            goodput=good / len(samples),
            good_per_s=good / self.seconds,
            latencies={
                "ttft": [one.ttft for one in answered if one.ttft is not None],
                "itl": [gap for one in answered for gap in one.itl],
                "tpot": [one.tpot for one in answered if one.tpot is not None],
                "e2e": [one.took for one in answered],
                "rejected": rejected,
            },
        )

    def errors(self) -> dict[str, int]:
        """How often each fault occurred, most common first."""
        found: dict[str, int] = {}
        for one in self.samples:
            if one.error:
                found[one.error] = found.get(one.error, 0) + 1
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def since_start(self, one: Sample) -> float:
        """Seconds from the start of the test to the start of a request."""
        return one.began - float(self.about["began"])

    def arrivals(self, samples: Iterable[Sample]) -> list[tuple[float, float]]:
        """Every chunk: seconds of the test, and tokens."""
        return [(self.since_start(one) + at, n) for one in samples for at, n in one.chunks]

    def points(self, latency: str, samples: Iterable[Sample]) -> list[tuple[float, float]]:
        """Every TTFT or E2E (at the start of its request) or ITL (at its token)."""
        found = []
        for one in samples:
            if one.outcome != "ok" or one.ttft is None:
                continue
            at = self.since_start(one)
            if latency != "itl":
                found.append((at, one.ttft if latency == "ttft" else one.took))
                continue
            at += one.ttft
            for gap in one.itl:
                at += gap
                found.append((at, gap))
        return found

    def windows(self, points: Iterable[tuple[float, float]], count: int) -> list[list[float]]:
        """The values of points by the window of time in which they lie."""
        found: list[list[float]] = [[] for _ in range(count)]
        for at, value in points:
            if 0 <= at < self.seconds:
                found[int(at / self.seconds * count)].append(value)
        return found
