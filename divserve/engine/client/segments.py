"""One answer that moves between two engines: its tokens so far and its current segment."""

from __future__ import annotations

import copy
from typing import Any

from vllm.v1.engine import EngineCoreEventType

from divserve.decoding import ModelSize
from divserve.engine.order import Order
from divserve.engine.reported import Report

__all__ = ["Run"]

PREEMPTED = EngineCoreEventType.PREEMPTED
SEED_STEP = 0x9E3779B97F4A7C15
"""Difference between the seeds of segments, so that none repeats another's random numbers."""


class Run:
    """One answer: its request, what it has so far, and the segment that makes its next tokens."""

    def __init__(self, request: Any, order: Order) -> None:
        self.request_id: str = request.request_id
        self.segment = ""
        """The engine's id of the running segment; empty between two segments."""
        self.on_small = False
        self.handing_over = False
        self._request = request
        self._order = order
        self._switch = order.spec.switch
        self._segments = 0
        self._output: list[int] = []

    @property
    def wanted(self) -> ModelSize:
        """The model that makes the next token."""
        return "large" if self._switch is None else self._switch.active

    def stay(self) -> None:
        """From now on the large model makes all tokens."""
        self._switch = None
        self.handing_over = False

    def start(self, on_small: bool) -> Any:
        """The request of the next segment."""
        params = copy.copy(self._request.sampling_params)
        self._order.switched(self._switch, tuple(self._output)).put_on(params)
        if params.seed is not None:
            params.seed = (params.seed + self._segments * SEED_STEP) % (1 << 63)
        segment = copy.copy(self._request)
        segment.sampling_params = params
        segment.request_id = self.segment = f"{self.request_id}~{self._segments}"
        self._segments += 1
        self.on_small, self.handing_over = on_small, False
        return segment

    def take(self, output: Any) -> None:
        """Turns an output of the segment into an output of the answer, in place."""
        output.request_id = self.request_id
        self._output += output.new_token_ids
        if self._segments > 1:
            # The answer counts as queued and scheduled only once.
            output.events = [e for e in output.events or () if e.type == PREEMPTED] or None
        report = Report.take_from(output)
        if report is None:
            return
        report.model = "small" if self.on_small else "large"
        if report.switch is not None:
            self._switch = report.switch
            self.handing_over = True
            output.finish_reason = output.stop_reason = None
        report.put_on(output)
