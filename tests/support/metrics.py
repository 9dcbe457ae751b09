"""Reading metrics: samples, their changes, and their documentation in docs/metrics.md."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.models import ROOT
from tests.support.server import API_KEY

PREFIX = "divserve_"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """The samples of divserve's metrics in the text of /metrics."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }


def families(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of divserve's metrics by their name in the text of /metrics.

    Families without a sample yet show no labels.
    """
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if name.startswith(PREFIX) and not name.endswith("_created"):
            samples = [s for s in family.samples if not s.name.endswith("_created")]
            labels = frozenset(label for s in samples for label in s.labels) - {"le"}
            found[name] = (family.type, labels)
    return found


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every metric in the tables of docs/metrics.md."""
    rows = re.findall(
        r"^\| `(divserve_\w+)` \| (\w+) \| ([^|]*) \|",
        (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def scraped(url: str) -> str:
    """The text of a server's /metrics."""
    key = {"Authorization": f"Bearer {API_KEY}"}
    request = urllib.request.Request(f"{url}/metrics", headers=key)
    with urllib.request.urlopen(request, timeout=60) as response:
        text: str = response.read().decode()
    return text


class Changes:
    """How much the samples have grown since this was made.

    Args:
        read: gives the text of /metrics.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read
        self._before = parse(read())

    def of(self, name: str, **labels: Any) -> float:
        """The growth of one sample; 0 if there is none."""
        key = (PREFIX + name, frozenset(labels.items()))
        return parse(self._read()).get(key, 0.0) - self._before.get(key, 0.0)
