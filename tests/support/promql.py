"""The series that a server exposes, and those that a PromQL expression uses."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
from prometheus_client.metrics import MetricWrapperBase

ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
TARGET = frozenset({"job", "instance", "namespace", "service", "pod"})
"""Labels that Prometheus adds when it scrapes."""
OWN_METRICS = {
    "up": TARGET,
    "ALERTS": TARGET | {"alertname", "alertstate", "severity"},
    "process_start_time_seconds": TARGET,
}
"""Series that Prometheus itself and its client library make."""


def series() -> dict[str, frozenset[str] | None]:
    """Every series by its name, with its labels; None where they are not known (vLLM's)."""
    return {**OWN_METRICS, **dict(_of_divserve()), **dict.fromkeys(_of_vllm())}


def _of_divserve() -> Iterator[tuple[str, frozenset[str]]]:
    from divserve import metrics

    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            labels = TARGET | frozenset(metric._labelnames)
            for ending in ENDINGS[metric._type or ""]:
                extra = {"le"} if ending == "_bucket" else set()
                yield metric._name + ending, labels | extra


def _of_vllm() -> Iterator[str]:
    """Read from vLLM's source: importing its loggers would import all of vLLM."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent / "v1" / "metrics" / "loggers.py"
    made = re.compile(r"_(counter|gauge|histogram)_cls\(\s*name=\"(vllm:\w+)\"")
    for kind, name in made.findall(source.read_text(encoding="utf-8")):
        bare = name.removesuffix("_total") if kind == "counter" else name
        yield from (bare + ending for ending in ENDINGS[kind])


def parse(expression: str) -> Any:
    """The syntax tree of an expression; Grafana's variables have been replaced.

    Raises:
        ValueError: it is not PromQL.
    """
    return promql_parser.parse(without_variables(expression))


def without_variables(expression: str) -> str:
    """The expression as Grafana sends it, with arbitrary values for its variables."""
    ranged = re.sub(r"\$__(rate_interval|range|interval)", "5m", expression)
    return re.sub(r"\$\{?[a-z_]+\}?", ".*", ranged)


def selectors(tree: Any) -> list[tuple[str, frozenset[str]]]:
    """Name and labels of each selector in an expression."""
    found = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            labels = frozenset(matcher.name for matcher in node.matchers.matchers)
            found.append((node.name or "", labels))
        return True

    promql_parser.walk(tree, pre_visit=visit)
    return found


def grouping(tree: Any) -> frozenset[str]:
    """Labels that the aggregations of an expression keep."""
    found: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        return True

    promql_parser.walk(tree, pre_visit=visit)
    return frozenset(found)
