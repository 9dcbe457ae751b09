"""Scheduler side of entropy-adaptive switching: end a segment when the other model is to go on.

The rule needs the entropy of the token just decoded, which the workers report with it. So it is
asked where vLLM asks whether a token ends its request, and a switch is such an end: no further step
is spent, and nothing is put into the text. What the rule has seen travels back with the token.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from divserve.decoding import STATISTICS, Switch, SwitchRule
from divserve.engine.order import Order
from divserve.engine.scheduler.admission import AdmissionMixin

__all__ = ["SwitchMixin"]

STALE = "the grammar does not accept what the other model wrote; the request was stopped"
ENTROPY = STATISTICS.index("entropy")


class SwitchMixin(AdmissionMixin):
    """Rules of the segments that run on this engine."""

    waiting: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rules: dict[str, SwitchRule] = {}
        self._switched: dict[str, Switch] = {}
        """Segments that end in this update because of their rule: what it has seen."""
        self._reports: dict[str, tuple[float, ...]] = {}
        """The workers' reports of this update."""
        self._replayed: set[str] = set()
        """Continuations whose grammar has yet to read the tokens so far."""

    def add_request(self, request: Request) -> None:
        """Adds the request; a continuation already has output."""
        order = Order.of(request.sampling_params)
        output = [] if order is None else list(order.output)
        if output:
            request.append_output_token_ids(output)
            # vLLM asserts that no more than the prompt comes out of the cache.
            request.prefill_stats = None
            if request.use_structured_output:
                self._replayed.add(request.request_id)
        super().add_request(request)
        if output and self.policy == SchedulingPolicy.FCFS:
            # Its client is in the middle of reading; the priority policy goes by arrival anyway.
            self.waiting.remove_requests([request])
            self.waiting.prepend_request(request)
        switch = None if order is None else order.spec.switch
        if switch is not None and request.request_id in self._groups:
            self._rules[request.request_id] = SwitchRule(switch)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        ready = bool(super()._handle_blocked_waiting_request(request))
        if ready and request.request_id in self._replayed:
            # Its grammar was compiled anew.
            self._replayed.discard(request.request_id)
            written = list(request.output_token_ids)
            if not self.structured_output_manager.accept_tokens(request, written):
                self._failed[request.request_id] = STALE
                return False
        return ready

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        new_token_ids, stopped = super()._update_request_with_output(
            request, new_token_ids, is_stale
        )
        request_id = request.request_id
        rule, report = self._rules.get(request_id), self._reports.get(request_id)
        if rule is None or report is None or not new_token_ids:
            return new_token_ids, stopped
        if rule.observe(report[ENTROPY]) and not stopped:
            request.status = RequestStatus.FINISHED_STOPPED
            self._switched[request_id] = rule.state
            stopped = True
        return new_token_ids, stopped

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._rules.pop(request.request_id, None)
        self._replayed.discard(request.request_id)
        return super()._free_request(request, *args, **kwargs)
