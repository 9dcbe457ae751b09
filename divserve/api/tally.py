"""The metrics of guided tokens: the figures of a choice, counted as they are sent to a client.

`divserve.api.instrumentation` counts per HTTP request. A token has up to half a dozen figures, so
they are collected and counted in batches of some dozens of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

from divserve import metrics
from divserve.metrics import BatchHistogram

__all__ = ["Tally"]

MOST_PENDING = 64
"""Tokens collected before they are counted."""
NATS_PER_BIT = math.log(2)


@cache
def _histograms(method: str) -> dict[str, BatchHistogram]:
    """The histograms of the figures of a method; methods are few, unlike requests."""
    return {
        "kl": metrics.KL.labels(method),
        "jsd": metrics.JSD.labels(method),
        "entropy": metrics.ENTROPY.labels(method),
        "temperature": metrics.TEMPERATURE.labels(method),
        "overlap": metrics.OVERLAP,
        "kl_min": metrics.LOOK_BACK_KL,
    }


class Tally:
    """Collects the tokens of one choice for the metrics.

    Args:
        method: the name of its stack.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._pending: list[Mapping[str, float]] = []

    def add(self, figures: Sequence[Mapping[str, float]], models: Sequence[str]) -> None:
        """Adds the tokens of one output.

        Args:
            figures: of each token, under the names of its methods' reports.
            models: the model that made each token; empty for requests of one model.
        """
        self._pending += figures
        for model in models:
            metrics.TOKENS.labels(model).inc()
        if len(self._pending) >= MOST_PENDING:
            self.flush()

    def add_drafts(self, more: Mapping[str, int]) -> None:
        """Adds draft tokens: how many were proposed and accepted, in how many rounds."""
        for name, metric in metrics.DRAFTS.items():
            metric.labels(self._method).inc(more[name])

    def flush(self) -> None:
        """Counts what is pending. Call it when the choice has ended, however it did."""
        if not self._pending:
            return
        tokens, self._pending = self._pending, []
        metrics.GUIDED_STEPS.inc(len(tokens))
        histograms = _histograms(self._method)
        for name in tokens[0]:
            # With two guides, "kl" and "kl_temperature.kl" are both figures of this stack.
            if (histogram := histograms.get(name.rpartition(".")[2])) is not None:
                histogram.observe_all([token[name] for token in tokens])
        if "entropy_bits" in tokens[0]:
            bits = [token["entropy_bits"] for token in tokens]
            histograms["entropy"].observe_all([NATS_PER_BIT * one for one in bits])
        if "overlap" in tokens[0]:
            agreed = sum(token["agree"] == 1 for token in tokens)
            metrics.AGREEMENT.labels("yes").inc(agreed)
            metrics.AGREEMENT.labels("no").inc(len(tokens) - agreed)
        if "alarm" in tokens[0]:
            metrics.LOOK_BACK_TOKENS.inc(len(tokens))
            metrics.LOOK_BACK_ALARMS.inc(sum(token["alarm"] == 1 for token in tokens))
