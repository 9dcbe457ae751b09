"""The runner's report of guided tokens, on its way to the scheduler beside the sampled tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

__all__ = ["GuidedOutput", "Report", "attach", "guidance_of"]

ATTRIBUTE = "divserve_guidance"


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

    @classmethod
    def start(
        cls, primaries: tuple[str, ...], statistics: Tensor, cooled: tuple[int, ...] = ()
    ) -> Report:
        """Starts the copy of ``statistics`` ``[G + C, S] float32`` to the host; does not wait."""
        if statistics.device.type != "cuda":
            return cls(primaries, cooled, statistics, None)
        host = torch.empty(statistics.shape, dtype=statistics.dtype, pin_memory=True)
        host.copy_(statistics, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(primaries, cooled, host, event)

    def rows(self) -> dict[str, tuple[float, ...]]:
        """Waits for the copy; statistics by primary request id."""
        if self.event is not None:
            self.event.synchronize()
        rows = self.statistics.tolist()
        count = len(self.primaries)
        for place, second in zip(self.cooled, rows[count:], strict=True):
            rows[place] += second
        return dict(zip(self.primaries, map(tuple, rows[:count]), strict=True))


class GuidedOutput(AsyncModelRunnerOutput):
    """An asynchronous runner output that brings its report along when it is collected."""

    def __init__(self, inner: AsyncModelRunnerOutput, report: Report) -> None:
        self._inner = inner
        self._report = report

    def get_output(self) -> ModelRunnerOutput:
        """Waits for the device; the runner's output with the report attached."""
        output = self._inner.get_output()
        setattr(output, ATTRIBUTE, self._report.rows())
        return output


def attach(
    output: ModelRunnerOutput | AsyncModelRunnerOutput, report: Report
) -> ModelRunnerOutput | AsyncModelRunnerOutput:
    """Attaches the report to what ``sample_tokens`` returns, synchronous or not."""
    if isinstance(output, AsyncModelRunnerOutput):
        return GuidedOutput(output, report)
    setattr(output, ATTRIBUTE, report.rows())
    return output


def guidance_of(output: ModelRunnerOutput) -> dict[str, tuple[float, ...]]:
    """The statistics rows of a step by primary request id; empty when nothing was guided."""
    return getattr(output, ATTRIBUTE, None) or {}
