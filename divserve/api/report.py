"""The account of what was decoded: the object ``decoding`` of each choice.

    {"method": str, "applied_steps": int, "guide_prompt_tokens": int,
     "mean": {figure: float | null, …}, "trace": [{"token", "token_id", "bytes", figure: …}, …]}

Where draft tokens were verified it also has "draft": {"proposed", "accepted", "rounds"}: how many
were, how many of the choice's tokens were drafts, and in how many steps.
With ``guide.model`` it also has "guide_models": by method, the model that read its guide. Where the
guide lacks a part of the request it has "guides": by method, the selector that found the part. An
answer that was decoded plainly because there was none has "applied_steps": 0 and the "reason".

A request that moved between two models also has "switches" and "tokens" by model, "compute_saved"
(the share of parameters × tokens saved against the large model alone; null if not known), and the
"model" of every token in its trace.

If the trace asks for it, each entry has "top": by stream, the likeliest tokens, each as {"token",
"logprob"}.

Everything comes from what the engine reported with each token, so ``applied_steps`` is measured,
not inferred. Figures are those of the methods' ``reports``, rounded to 6 decimals; numbers that are
not finite become null, because JSON has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Protocol

from divserve import metrics
from divserve.api.tally import Tally
from divserve.api.texts import CONTEXT, Decode, undecoded
from divserve.api.top import rendered
from divserve.decoding import Stack
from divserve.decoding.spec import Top
from divserve.errors import DecodingFailed

__all__ = ["ChoiceReport", "GuidedOutput", "PlainReport"]


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
        two_seconds: bool,
        temperature: float,
        guide_tokens: int,
        decode: Decode,
        compute_ratio: float | None = None,
        found_by: Mapping[str, str] | None = None,
    ) -> None:
        self._stack = stack
        self._temperature = temperature
        self._guide_tokens = guide_tokens
        self._decode = decode
        self._tally = Tally(stack.name)
        self.steps = 0
        """Tokens decoded with the method so far."""
        self.sums = dict.fromkeys(stack.reports(two_seconds), 0.0)
        self._pending: list[dict[str, Any]] = []
        self._streams = stack.streams(two_seconds)
        self._last: list[int] = []
        """The last tokens, on which the text of the next one may depend."""
        self._compute_ratio = compute_ratio
        self._found_by = dict(found_by or {})
        self._models: list[str] = []
        self._drafts: Counter[str] = Counter()

    def add(self, output: GuidedOutput) -> None:
        """Adds the tokens of one output.

        Raises:
            DecodingFailed: the engine did not report exactly one row of statistics per token, or
                not the likeliest tokens that were asked for.
        """
        rows: Sequence[Sequence[float]] = getattr(output, "guidance", ())
        if len(rows) != len(output.token_ids):
            metrics.broken_pair("front_end", len(output.token_ids) - len(rows))
            raise DecodingFailed(
                f"{len(output.token_ids)} tokens came with {len(rows)} statistics: "
                f"{self._stack.name} was not applied to all of them."
            )
        tops: Sequence[Top] = getattr(output, "tops", ())
        if self._stack.top and len(tops) != len(rows):
            raise DecodingFailed(f"{len(rows)} tokens came with the likeliest of {len(tops)}.")
        figures = [self._stack.report(row, self._temperature) for row in rows]
        models: Sequence[str] = getattr(output, "models", ())
        self._models += models
        self.steps += len(figures)
        self._tally.add(figures, models)
        if (drafts := getattr(output, "drafts", None)) is not None:
            self._drafts.update(more := asdict(drafts))
            self._tally.add_drafts(more)
        for one in figures:
            for name in self.sums:
                self.sums[name] += one[name]
        if self._stack.trace:
            details = [self._stack.details(row) for row in rows]
            self._trace(output.token_ids, figures, details, models, tops)
        if output.finish_reason is not None:
            self.end()

    def end(self) -> None:
        """Counts the last tokens in the metrics. Call it when the choice ends early."""
        self._tally.flush()

    def take_trace(self) -> list[dict[str, Any]]:
        """The trace entries that have not been taken yet, in the order of the tokens."""
        taken, self._pending = self._pending, []
        return taken

    def summary(self) -> dict[str, Any]:
        """The whole object, with the trace entries that have not been taken yet."""
        steps = self.steps
        summary: dict[str, Any] = {
            "method": self._stack.name,
            "applied_steps": steps,
            "guide_prompt_tokens": self._guide_tokens,
            "mean": {
                k: _number(total / steps) if steps else None for k, total in self.sums.items()
            },
        }
        if models := self._stack.guide_models:
            summary["guide_models"] = models
        if self._found_by:
            summary["guides"] = self._found_by
        if self._stack.switches:
            summary |= self._moves()
        if self._drafts:
            summary["draft"] = dict(self._drafts)
        if self._stack.trace:
            summary["trace"] = self.take_trace()
        return summary

    def _moves(self) -> dict[str, Any]:
        """How the answer moved between its two models."""
        models, ratio = self._models, self._compute_ratio
        small = models.count("small")
        saved = None if ratio is None or not models else small * (1 - ratio) / len(models)
        return {
            "switches": sum(one != other for one, other in pairwise(models)),
            "tokens": {"small": small, "large": len(models) - small},
            "compute_saved": saved if saved is None else _number(saved),
        }

    def _trace(
        self,
        token_ids: Sequence[int],
        figures: Sequence[dict[str, float]],
        details: Sequence[dict[str, Any]],
        models: Sequence[str],
        tops: Sequence[Top],
    ) -> None:
        known = [*self._last, *token_ids]
        first = len(self._last)
        before = [known[max(0, i - CONTEXT) : i] for i in range(first, len(known))]
        self._last = known[-CONTEXT:]
        tokens = self._decode(token_ids, before)
        entries: list[dict[str, Any]] = [
            {
                "token": token.text,
                "token_id": token_id,
                "bytes": token.utf8,
                **{k: _number(v) for k, v in one.items()},
                **more,
            }
            for token, token_id, one, more in zip(tokens, token_ids, figures, details, strict=True)
        ]
        for more, context in zip(details, before, strict=True):
            # Not from the entries: some methods have a figure of this name.
            candidates: list[dict[str, Any]] = more.get("candidates", [])
            ids = [candidate["token_id"] for candidate in candidates]
            names = self._decode(ids, [context] * len(ids))
            for candidate, name in zip(candidates, names, strict=True):
                candidate.update(token=name.text, kl=_number(candidate["kl"]))
        if tops:
            shown = rendered(tops, self._streams, before, self._decode)
            for entry, top in zip(entries, shown, strict=True):
                entry["top"] = top
        for entry, model in zip(entries, models, strict=False):
            entry["model"] = model
        self._pending += entries


class PlainReport(ChoiceReport):
    """The account of a choice that was decoded plainly, as its guide allows: it says why."""

    def __init__(self, stack: Stack, reason: str) -> None:
        super().__init__(stack, False, 0.0, 0, undecoded)
        self._reason = reason

    def add(self, output: GuidedOutput) -> None:
        """Nothing: no statistics come with plain tokens."""

    def summary(self) -> dict[str, Any]:
        """The whole object."""
        return {**super().summary(), "mean": {}, "reason": self._reason}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
