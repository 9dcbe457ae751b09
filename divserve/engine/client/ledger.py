"""Front end: the statistics of every guided token, kept until its request collects them.

If a consumer is slower than the engine, vLLM merges its outputs, and a merge keeps only the last
``kv_transfer_params``. So the reports are taken out of the engine's outputs before vLLM processes
them, and handed out by token count: however outputs were merged, token i gets its own statistics.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from divserve import metrics
from divserve.decoding import ModelSize, Read, Spec
from divserve.decoding.spec import Top
from divserve.engine.client.drafted import Drafted, DraftLog
from divserve.engine.order import Order
from divserve.engine.reported import Report, Statistics

__all__ = ["Account", "Ledger"]

T = TypeVar("T")


@dataclass(slots=True)
class Account:
    """What the engine has reported for one client request."""

    ticket: int
    statistics: defaultdict[int, deque[Statistics]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    """Statistics not yet handed out, by choice index."""
    tops: defaultdict[int, deque[Top]] = field(default_factory=lambda: defaultdict(deque))
    """The likeliest tokens behind each of these tokens, by choice, if the request asks for them."""
    models: defaultdict[int, deque[ModelSize]] = field(default_factory=lambda: defaultdict(deque))
    """The model that made each of these tokens, by choice; empty for requests to one model."""
    drafts: defaultdict[int, DraftLog] = field(default_factory=lambda: defaultdict(DraftLog))
    """The draft tokens behind these tokens, by choice."""
    read: Read | None = None
    """The figures of a scored text, once it has been read."""
    error: str | None = None
    refused: bool = False
    """Whether the error means that the scheduler rejected a group that can never run."""
    request_ids: list[str] = field(default_factory=list)
    """The engine's ids for the request: several if n > 1."""

    def take(self, index: int, num_tokens: int) -> list[Statistics]:
        """Hands out the statistics of a choice's next tokens, or as many as were reported."""
        return _take_first(self.statistics[index], num_tokens)

    def take_tops(self, index: int, num_tokens: int) -> list[Top]:
        """Hands out the likeliest tokens behind a choice's next tokens; none if not asked for."""
        return _take_first(self.tops[index], num_tokens)

    def take_drafts(self, index: int, num_tokens: int) -> Drafted | None:
        """Hands out the draft tokens behind a choice's next tokens; None if there are none."""
        return self.drafts[index].take(num_tokens)

    def take_models(self, index: int, num_tokens: int) -> list[ModelSize]:
        """Hands out the models of a choice's next tokens; none for requests to one model."""
        return _take_first(self.models[index], num_tokens)


def _count(report: Report) -> None:
    """Updates the metrics for the engine's process, whose own metrics nobody scrapes."""
    if report.wait_s is not None:
        metrics.PAIR_WAIT.observe(report.wait_s)
    if report.kernel_s is not None:
        metrics.KERNEL.observe(report.kernel_s)
    if report.broken is not None:
        metrics.broken_pair(report.broken, report.unguided)


def _take_first(queue: deque[T], count: int) -> list[T]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]


class Ledger:
    """All accounts of one front end, fed by vLLM's output processor."""

    def __init__(self, output_processor: Any) -> None:
        self._tickets = count()
        self._accounts: dict[int, Account] = {}
        self._by_request: dict[str, tuple[Account, int]] = {}
        self._add_request = output_processor.add_request
        self._process_outputs = output_processor.process_outputs
        output_processor.add_request = self._register
        output_processor.process_outputs = self._collect

    def open(self, spec: Spec, vocab: int | None = None) -> tuple[Account, Order]:
        """Opens an account; returns it and the order for the scheduler, marked with its ticket."""
        account = Account(ticket=next(self._tickets))
        self._accounts[account.ticket] = account
        return account, Order(spec, account.ticket, vocab)

    def close(self, account: Account) -> None:
        """Forgets the account; what the engine still sends for it is dropped."""
        self._accounts.pop(account.ticket, None)
        for request_id in account.request_ids:
            self._by_request.pop(request_id, None)

    def _register(
        self,
        request: Any,
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: Any = None,
    ) -> None:
        self._add_request(request, prompt, parent_req, request_index, queue)
        order = Order.of(request.sampling_params)
        ticket = None if order is None else order.ticket
        if ticket is not None and (account := self._accounts.get(ticket)) is not None:
            self._by_request[request.request_id] = (account, request_index)
            account.request_ids.append(request.request_id)

    def _collect(self, engine_core_outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            if (report := Report.take_from(output)) is not None:
                self._take(output.request_id, report)
        return self._process_outputs(engine_core_outputs, *args, **kwargs)

    def _take(self, request_id: str, report: Report) -> None:
        _count(report)
        entry = self._by_request.get(request_id)
        if entry is None:
            return
        account, index = entry
        account.statistics[index].extend(report.statistics)
        account.tops[index].extend(report.tops)
        account.drafts[index].add(len(report.statistics), report.drafted)
        if report.model is not None:
            account.models[index].extend([report.model] * len(report.statistics))
        if report.read is not None:
            account.read = report.read
        if report.error is not None:
            account.error, account.refused = report.error, report.refused
