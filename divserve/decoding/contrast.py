"""What most contrast methods report for a token."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["AMATEUR_REPORTS", "CONTRAST_REPORTS", "amateur_report", "contrast_report"]

CONTRAST_REPORTS = ("entropy", "kl", "jsd", "alpha")
AMATEUR_REPORTS = (*CONTRAST_REPORTS, "candidates", "overlap", "agree")


def contrast_report(statistics: Mapping[str, float]) -> dict[str, float]:
    """Entropy of the primary, both divergences (nats) and the contrast weight that was used."""
    return {name: statistics[name] for name in CONTRAST_REPORTS}


def amateur_report(statistics: Mapping[str, float]) -> dict[str, float]:
    """`contrast_report`, the tokens left, and how near the amateur is to the served model.

    ``overlap`` is Σ min(p, q), the share of the amateur's drafts that speculative sampling would
    accept; ``agree`` is 1 where the same token is likeliest under both models.
    """
    named = {"candidates": statistics["kept"]}
    nearness = {name: statistics[name] for name in ("overlap", "agree")}
    return {**contrast_report(statistics), **named, **nearness}
