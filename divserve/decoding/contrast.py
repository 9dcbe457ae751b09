"""What most contrast methods report for a token."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CONTRAST_REPORTS", "contrast_report"]

CONTRAST_REPORTS = ("entropy", "kl", "jsd", "alpha")


def contrast_report(statistics: Mapping[str, float]) -> dict[str, float]:
    """Entropy of the primary, both divergences (nats) and the contrast weight that was used."""
    return {name: statistics[name] for name in CONTRAST_REPORTS}
