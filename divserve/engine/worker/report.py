"""Sends the statistics of a step to the scheduler, with the sampled tokens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from divserve.decoding import Read
from divserve.decoding.spec import Top
from divserve.engine.reported import Guidance, Statistics, set_guidance
from divserve.engine.worker.look_step import readable
from divserve.engine.worker.top_tokens import TopStep

__all__ = ["Comparisons", "GuidedOutput", "PendingGuidance", "Timer", "attach"]

TIMED_EVERY = 16
"""One in this many guided steps on a GPU is timed: two events in every step would cost more than a
histogram that few people scrape is worth."""


class Timer:
    """Times the device's work between creation and `stop`, without waiting for the device."""

    @classmethod
    def for_step(cls, device: torch.device, step: int) -> Timer | None:
        """A started timer for the guided step with this number; None if that step is not timed."""
        return cls(device) if device.type == "cpu" or step % TIMED_EVERY == 0 else None

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._started = time.perf_counter()
        self._seconds = 0.0
        if device.type == "cuda":
            self._mark()

    def stop(self) -> None:
        """Marks the end of the timed span."""
        if self._events:
            self._mark()
        else:
            self._seconds = time.perf_counter() - self._started

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def seconds(self) -> float:
        """Duration of the span in seconds; the device must have passed both ends."""
        if not self._events:
            return self._seconds
        first, last = self._events
        return float(first.elapsed_time(last)) / 1000


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Results of the requests that look back in a step (`LookStep.run`)."""

    places: tuple[int, ...]
    """Their indices among the groups of the step."""
    ks: tuple[int, ...]
    """Their numbers of candidates."""
    values: Tensor
    """``[L, 3 + 2 K] float32``."""


@dataclass(frozen=True, slots=True)
class PendingGuidance:
    """The `Guidance` of one step, until the device has computed it."""

    names: tuple[str, ...]
    """Primary request ids of its groups, once for each position at which they sample."""
    statistics: Tensor
    """``[P + N, len(STATISTICS)] float32`` on the host, valid after `event`: those of all
    positions, then those of the second programs."""
    second: tuple[int, ...]
    """Indices of the positions that have a second program."""
    comparisons: Comparisons | None = None
    timer: Timer | None = None
    """Timer of the guidance operation; None in most steps (`Timer`)."""
    failures: Tensor | None = None
    """``[1] float32``: how many tensor-parallel ranks have failed to guide the step (`Ranks`)."""
    top: TopStep | None = None
    """The likeliest tokens of the streams; None if no request asks for them."""
    top_values: Tensor | None = None
    """`TopStep.values`, once it is complete."""
    event: torch.cuda.Event | None = None
    reads: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """What was found in scored texts, by primary request id: the fields of `Read`."""

    def copied(self) -> PendingGuidance:
        """The same with a copy to the host under way; does not wait for the device.

        Call it once the step has been sampled.
        """
        top = self.top.values if self.top is not None and self.top.complete else None
        if self.statistics.device.type != "cuda":
            return replace(self, top_values=top)
        statistics, comparisons = _start_copy(self.statistics), self.comparisons
        failures = None if self.failures is None else _start_copy(self.failures)
        if comparisons is not None:
            comparisons = replace(comparisons, values=_start_copy(comparisons.values))
        if top is not None:
            top = _start_copy(top)
        reads = {name: tuple(map(_start_copy, found)) for name, found in self.reads.items()}
        event = torch.cuda.Event()
        event.record()
        return replace(
            self,
            statistics=statistics,
            comparisons=comparisons,
            failures=failures,
            top_values=top,
            event=event,
            reads=reads,
        )

    def collect(self) -> Guidance:
        """Waits for the copy and returns the guidance: none if a part of it has failed."""
        if self.event is not None:
            self.event.synchronize()
        if self.failures is not None and self.failures.any():
            return Guidance({}, None)
        if self.top is not None and self.top_values is None:
            return Guidance({}, None)
        numbers = self.statistics.tolist()
        count = len(self.names)
        for place, more in zip(self.second, numbers[count:], strict=True):
            numbers[place] += more
        if (found := self.comparisons) is not None:
            values = found.values.tolist()
            for place, k, own in zip(found.places, found.ks, values, strict=True):
                numbers[place] += readable(own, k)
        statistics: dict[str, list[Statistics]] = {}
        for name, own in zip(self.names, numbers[:count], strict=True):
            statistics.setdefault(name, []).append(tuple(own))
        # The event of the copy, which has been waited for, comes after the timer's events.
        seconds = None if self.timer is None else self.timer.seconds()
        reads = {name: Read(*map(_packed, found)) for name, found in self.reads.items()}
        broken = self._broken(statistics) | self._unreadable()
        return Guidance(statistics, seconds, broken, self._tops(), reads)

    def _tops(self) -> dict[str, list[Top]]:
        """By primary, at each of its positions: the likeliest tokens, where they are asked for."""
        tops: dict[str, list[Top]] = {}
        if self.top is not None and self.top_values is not None:
            for place, top in self.top.read(self.top_values.tolist()).items():
                tops.setdefault(self.names[place], []).append(top)
        return tops

    def _unreadable(self) -> frozenset[str]:
        """Groups with a text of which a log-prob is NaN."""
        return frozenset(name for name, found in self.reads.items() if found[0][:, 0].isnan().any())

    def _broken(self, statistics: dict[str, list[Statistics]]) -> frozenset[str]:
        """Groups whose statistics contain NaN."""
        compared = () if self.comparisons is None else self.comparisons.places
        if not self.statistics.isnan().any() and not compared:
            return frozenset()
        return frozenset(
            name for name, found in statistics.items() if any(map(math.isnan, chain(*found)))
        )


def _packed(values: Tensor) -> bytes:
    return values.numpy().tobytes()


def _start_copy(values: Tensor) -> Tensor:
    """Starts a copy of ``values`` to the host; it is valid once the device gets there."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    return host


class GuidedOutput(AsyncModelRunnerOutput):
    """An asynchronous runner output that gets its guidance when it is collected."""

    def __init__(self, inner: AsyncModelRunnerOutput, pending: PendingGuidance) -> None:
        self._inner = inner
        self._pending = pending

    def get_output(self) -> ModelRunnerOutput:
        """Waits for the device; returns the runner's output with the guidance attached."""
        output = self._inner.get_output()
        set_guidance(output, self._pending.collect())
        return output


def attach(
    output: ModelRunnerOutput | AsyncModelRunnerOutput, pending: PendingGuidance
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    """Attaches the guidance to the result of ``sample_tokens``, synchronous or not."""
    pending = pending.copied()
    if isinstance(output, AsyncModelRunnerOutput):
        return GuidedOutput(output, pending)
    set_guidance(output, pending.collect())
    return output
