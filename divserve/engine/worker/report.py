"""The runner's report of guided tokens, on its way to the scheduler beside the sampled tokens."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from divserve.engine.order import Guidance, set_guidance
from divserve.engine.worker.look_step import readable

__all__ = ["GuidedOutput", "Looked", "Report", "Timer", "attach"]


class Timer:
    """Times what is done between its making and `stop`: on the device, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._started = time.perf_counter()
        self._seconds = 0.0
        if device.type == "cuda":
            self._mark()

    def stop(self) -> None:
        """Ends the span of time."""
        if self._events:
            self._mark()
        else:
            self._seconds = time.perf_counter() - self._started

    def _mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def seconds(self) -> float:
        """The time taken; the device must have passed both ends."""
        if not self._events:
            return self._seconds
        first, last = self._events
        return float(first.elapsed_time(last)) / 1000


@dataclass(frozen=True, slots=True)
class Looked:
    """What lookers of one step found (`divserve.engine.worker.look_table`)."""

    places: tuple[int, ...]
    """Their places among the primaries."""
    ks: tuple[int, ...]
    values: Tensor
    """``[L, 3 + 2 K] float32``."""


@dataclass(frozen=True, slots=True)
class Report:
    """Statistics of one step on their way to the host."""

    primaries: tuple[str, ...]
    cooled: tuple[int, ...]
    """Places among `primaries` of those with a second program."""
    statistics: Tensor
    """``[G + C, len(STATISTICS)] float32`` on the host, valid after `event`: first those of all
    primaries, then those of the second programs."""
    event: torch.cuda.Event | None
    looked: Looked | None = None
    timer: Timer | None = None
    """Of the operation that made them."""

    @classmethod
    def start(
        cls,
        primaries: tuple[str, ...],
        statistics: Tensor,
        cooled: tuple[int, ...] = (),
        looked: Looked | None = None,
        timer: Timer | None = None,
    ) -> Report:
        """Starts the copy of ``statistics`` ``[G + C, S] float32`` to the host; does not wait."""
        if statistics.device.type != "cuda":
            return cls(primaries, cooled, statistics, None, looked, timer)
        host = _start_copy(statistics)
        if looked is not None:
            looked = replace(looked, values=_start_copy(looked.values))
        event = torch.cuda.Event()
        event.record()
        return cls(primaries, cooled, host, event, looked, timer)

    def rows(self) -> dict[str, tuple[float, ...]]:
        """Waits for the copy; statistics by primary request id."""
        if self.event is not None:
            self.event.synchronize()
        rows = self.statistics.tolist()
        count = len(self.primaries)
        for place, second in zip(self.cooled, rows[count:], strict=True):
            rows[place] += second
        if self.looked is not None:
            values = self.looked.values.tolist()
            for place, k, found in zip(self.looked.places, self.looked.ks, values, strict=True):
                rows[place] += readable(found, k)
        return dict(zip(self.primaries, map(tuple, rows[:count]), strict=True))

    def put_on(self, output: ModelRunnerOutput) -> None:
        """Waits for the copy and attaches what has been found."""
        statistics = self.rows()
        # The event behind the copy, which `rows` has waited for, is behind the timer's.
        seconds = None if self.timer is None else self.timer.seconds()
        broken = frozenset(name for name, row in statistics.items() if any(map(math.isnan, row)))
        set_guidance(output, Guidance(statistics, seconds, broken))


def _start_copy(values: Tensor) -> Tensor:
    """``values`` on the host once the device gets there."""
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    return host


class GuidedOutput(AsyncModelRunnerOutput):
    """An asynchronous runner output that brings its report along when it is collected."""

    def __init__(self, inner: AsyncModelRunnerOutput, report: Report) -> None:
        self._inner = inner
        self._report = report

    def get_output(self) -> ModelRunnerOutput:
        """Waits for the device; the runner's output with the report attached."""
        output = self._inner.get_output()
        self._report.put_on(output)
        return output


def attach(
    output: ModelRunnerOutput | AsyncModelRunnerOutput, report: Report
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    """Attaches the report to what ``sample_tokens`` returns, synchronous or not."""
    if isinstance(output, AsyncModelRunnerOutput):
        return GuidedOutput(output, report)
    report.put_on(output)
    return output
