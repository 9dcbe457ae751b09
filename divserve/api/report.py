"""The account of what was decoded: the object ``decoding`` of each choice.

    {"method": str, "applied_steps": int, "guide_prompt_tokens": int,
     "mean": {figure: float | null, …}, "trace": [{"token", "token_id", figure: …}, …]}

Everything comes from what the engine reported with each token, so ``applied_steps`` is evidence,
not arithmetic. Figures are those of the methods' ``reports``, rounded to 6 decimals; numbers that
are not finite become null, for JSON has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from divserve.decoding import Stack
from divserve.errors import DecodingFailed

__all__ = ["ChoiceReport", "GuidedOutput"]

Decode = Callable[[Sequence[int]], list[str]]
"""Token ids to the text of each token."""


class GuidedOutput(Protocol):
    """What the engine's client yields for one choice."""

    @property
    def index(self) -> int: ...

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def finish_reason(self) -> str | None: ...


class ChoiceReport:
    """Collects the engine's statistics of one choice and renders them."""

    def __init__(
        self,
        stack: Stack,
        two_guides: bool,
        temperature: float,
        guide_tokens: int,
        decode: Decode,
    ) -> None:
        self._stack = stack
        self._temperature = temperature
        self._guide_tokens = guide_tokens
        self._decode = decode
        self._steps = 0
        self._sums = dict.fromkeys(stack.reports(two_guides), 0.0)
        self._pending: list[dict[str, Any]] = []

    def add(self, output: GuidedOutput) -> None:
        """Takes in the tokens of one output.

        Raises:
            DecodingFailed: the engine did not report exactly one row of statistics per token.
        """
        rows: Sequence[Sequence[float]] = getattr(output, "guidance", ())
        if len(rows) != len(output.token_ids):
            raise DecodingFailed(
                f"{len(output.token_ids)} tokens came with {len(rows)} statistics: "
                f"{self._stack.name} was not applied to all of them."
            )
        figures = [self._stack.report(row, self._temperature) for row in rows]
        self._steps += len(figures)
        for one in figures:
            for name in self._sums:
                self._sums[name] += one[name]
        if self._stack.trace:
            self._trace(output.token_ids, figures)

    def take_trace(self) -> list[dict[str, Any]]:
        """The trace entries that were not taken yet, in the order of the tokens."""
        taken, self._pending = self._pending, []
        return taken

    def summary(self) -> dict[str, Any]:
        """The whole object, with the trace entries that were not taken yet."""
        steps = self._steps
        summary: dict[str, Any] = {
            "method": self._stack.name,
            "applied_steps": steps,
            "guide_prompt_tokens": self._guide_tokens,
            "mean": {
                k: _number(total / steps) if steps else None for k, total in self._sums.items()
            },
        }
        if self._stack.trace:
            summary["trace"] = self.take_trace()
        return summary

    def _trace(self, token_ids: Sequence[int], figures: Sequence[dict[str, float]]) -> None:
        texts = self._decode(token_ids)
        self._pending += [
            {"token": text, "token_id": token_id, **{k: _number(v) for k, v in one.items()}}
            for text, token_id, one in zip(texts, token_ids, figures, strict=True)
        ]


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
