"""The record of one HTTP request: the source of metrics, logs and spans once it has ended.

`divserve.api.instrumentation` opens and closes a record for every request; the routes and the
serving classes fill in what only they know. The record is in the ASGI scope, under `RECORD`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import Scope

from divserve.api.report import ChoiceReport
from divserve.http.foreign import status_of
from divserve.http.scope import KEY_NAME

__all__ = ["RECORD", "Noted", "Outcome", "Record"]

RECORD = "divserve.record"

Outcome = Literal["ok", "client_error", "failed", "aborted"]

CLIENT_GONE = 499


@dataclass(slots=True)
class Record:
    """One HTTP request."""

    scope: Scope = field(default_factory=dict)
    """The ASGI scope of the innermost layer that the request reached."""
    started: float = field(default_factory=time.perf_counter)
    started_ns: int = field(default_factory=time.time_ns)
    method: str | None = None
    """Name of its decoding methods, "plain" without any; None where nothing is decoded or the body
    was rejected before they were known."""
    model: str | None = None
    answer_id: str | None = None
    streams: bool | None = None
    """As requested; None where `method` is None."""
    prompt: Any = None
    """The messages or prompts, if they are logged."""
    prompt_tokens: dict[int, int] = field(default_factory=dict)
    """By the index of the prompt."""
    guide_tokens: int | None = None
    completion_tokens: int | None = None
    """None where `method` is None."""
    ttft: float | None = None
    """Seconds to the first token."""
    finish_reasons: list[str] = field(default_factory=list)
    reports: list[ChoiceReport] = field(default_factory=list)
    status: int | None = None
    request_id: str | None = None
    error: Mapping[str, Any] | None = None
    complete: bool = False
    """Whether the last byte of the response was sent."""
    gone: bool = False
    """Whether the client left before that."""
    duration: float = 0.0

    def __deepcopy__(self, memo: Any) -> Record:
        # vLLM's requests carry the record, and are copied before they are rendered.
        return self

    def note(self, prompt: int, result: Any) -> None:
        """Records what the engine yielded for the prompt of this index."""
        if self.ttft is None:
            self.ttft = self._first_token(result)
        if prompt not in self.prompt_tokens:
            self.prompt_tokens[prompt] = len(result.prompt_token_ids or ())
        for output in result.outputs:
            self.completion_tokens = (self.completion_tokens or 0) + len(output.token_ids)
            if output.finish_reason is not None:
                self.finish_reasons.append(output.finish_reason)

    def _first_token(self, result: Any) -> float | None:
        if self.streams:
            return time.perf_counter() - self.started
        # The answer came as a whole; only the engine's own statistics know, if they are enabled.
        latency = getattr(getattr(result, "metrics", None), "first_token_latency", None)
        return latency or None

    @property
    def outcome(self) -> Outcome:
        """How the request ended."""
        if self.gone:
            return "aborted"
        if self.error is not None and (self.status or 0) < 400:
            # An event in the middle of a stream, whose status was already sent.
            return "client_error" if 400 <= status_of(self.error) < 500 else "failed"
        if self.status is None or not self.complete or self.status >= 500:
            return "failed"
        return "client_error" if self.status >= 400 else "ok"

    @property
    def shown_status(self) -> int:
        """The status for metrics and logs: 499 where the client left before there was one."""
        return CLIENT_GONE if self.gone else self.status or 500

    def means(self) -> dict[str, float]:
        """The mean of each figure over all tokens of all choices."""
        steps = self.steps
        totals: dict[str, float] = {}
        for report in self.reports:
            for name, total in report.sums.items():
                totals[name] = totals.get(name, 0.0) + total
        return {name: total / steps for name, total in totals.items()} if steps else {}

    @property
    def key_name(self) -> str | None:
        """The name of the API key, if authentication knows one."""
        name = self.scope.get("state", {}).get(KEY_NAME)
        return name if isinstance(name, str) else None

    @property
    def steps(self) -> int:
        """Tokens decoded with the method."""
        return sum(report.steps for report in self.reports)


class Noted:
    """The engine's results, recorded on their way to vLLM's answer.

    Not a generator: results of plain requests pass here too, and a token must cost almost nothing.

    Args:
        results: single results, or pairs of the index of a prompt and a result.
        record: where they are recorded.
        indexed: whether they are pairs.
    """

    def __init__(self, results: AsyncIterator[Any], record: Record, indexed: bool = False) -> None:
        self._next = results.__anext__
        self._record = record
        self._indexed = indexed

    def __aiter__(self) -> Noted:
        return self

    async def __anext__(self) -> Any:
        item = await self._next()
        prompt, result = item if self._indexed else (0, item)
        self._record.note(prompt, result)
        return item
