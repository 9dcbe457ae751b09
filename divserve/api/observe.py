"""Counts what was decoded in divserve's Prometheus metrics, as it is handed to clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from divserve import metrics

__all__ = ["observe"]


def observe(figures: Sequence[Mapping[str, float]], models: Sequence[str]) -> None:
    """Counts the tokens of one output.

    Args:
        figures: of each token, under the names of its methods' reports.
        models: the model that made each token; empty for requests of one model.
    """
    for one in figures:
        if "overlap" in one:
            metrics.OVERLAP.observe(one["overlap"])
            metrics.AGREEMENT.labels("yes" if one["agree"] == 1 else "no").inc()
    for model in models:
        metrics.TOKENS.labels(model).inc()
