"""Alert rules and the queries of dashboard and autoscalers: PromQL over metrics that exist."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from tests.support.deploy import DEPLOY, load, of_kind, program, rendered
from tests.support.promql import (
    OWN_METRICS,
    TARGET,
    grouping,
    parse,
    selectors,
    series,
    without_variables,
)
from tests.support.server import free_port

PROMETHEUS = DEPLOY / "prometheus"
DEBIAN = "make test-deploy unpacks Debian's package prometheus where it can"
RULES: list[dict[str, Any]] = [
    rule for group in load(PROMETHEUS / "rules/divserve.yml")["groups"] for rule in group["rules"]
]
DASHBOARD = load(DEPLOY / "grafana/dashboards/divserve.json")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SHOWN = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in PANELS
    for target in panel["targets"]
}
QUERIES = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **SHOWN,
    "annotation": DASHBOARD["annotations"]["list"][0]["expr"],
}
by_query = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)


def unknown(expression: str) -> list[str]:
    """Series and labels in an expression that no server exposes."""
    known, tree = series(), parse(expression)
    found = selectors(tree)
    assert found, "no metric at all"
    wrong = []
    for name, labels in found:
        if name not in known:
            wrong.append(name)
        elif (there := known[name]) is not None:
            wrong += [f"{name}{{{label}}}" for label in sorted(labels - there)]
            wrong += [f"{name} by ({label})" for label in sorted(grouping(tree) - there)]
    return wrong


@by_query
def test_ranks_are_one_account(query: str) -> None:
    """vLLM has a series per data-parallel rank: they are added up, or the largest counts."""
    together = r"\b(sum|max)( by \([^)]*\))? ?\( ?((rate|increase)\()?vllm:"
    text = " ".join(query.split())
    assert len(re.findall(together, text)) == text.count("vllm:")
    assert not re.search(r"by \([^)]*\bengine\b[^)]*\) \(vllm:", text)


@by_query
def test_a_query_uses_what_there_is(query: str) -> None:
    assert unknown(query) == []


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("rate(divserve_typo_total[5m])", ["divserve_typo_total"]),
        ("vllm:gpu_cache_usage_perc", ["vllm:gpu_cache_usage_perc"]),
        ('divserve_engine_up{motor="a"}', ["divserve_engine_up{motor}"]),
        ("sum by (motor) (divserve_engine_up)", ["divserve_engine_up by (motor)"]),
    ],
)
def test_what_there_is_not_is_noticed(query: str, wrong: list[str]) -> None:
    assert unknown(query) == wrong


def test_keda_s_query() -> None:
    (trigger,) = of_kind(rendered("full"), "ScaledObject")["spec"]["triggers"]
    assert unknown(trigger["metadata"]["query"]) == []


def test_the_adapter_s_rule_makes_the_metric_of_the_chart() -> None:
    adapter = load(DEPLOY / "prometheus/adapter-values.yaml")
    (rule,) = adapter["rules"]["custom"]
    (metric,) = of_kind(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert unknown(rule["seriesQuery"]) == []


def test_rules_say_what_is_wrong_and_how_bad() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]


def test_an_unguided_step_is_critical_at_once() -> None:
    (rule,) = [rule for rule in RULES if "divserve_unguided_steps_total" in rule["expr"]]
    assert rule["labels"]["severity"] == "critical"
    assert "for" not in rule
    assert rule["expr"].endswith("> 0")


def test_promtool_accepts_the_configuration() -> None:
    promtool = program("promtool", DEBIAN)
    done = subprocess.run(
        [promtool, "check", "config", PROMETHEUS / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_fire_when_they_should() -> None:
    promtool = program("promtool", DEBIAN)
    done = subprocess.run(
        [promtool, "test", "rules", PROMETHEUS / "tests.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


VALUES = {"status": "500", "agrees": "yes"}
"""Labels that queries select by value."""


@functools.cache
def exposed() -> list[str]:
    """All of `series` with some labels, including an unguided step."""
    lines = []
    for name, labels in sorted(series().items()):
        if name not in OWN_METRICS:
            own = sorted((labels or {"engine"}) - TARGET - {"le"})
            values = {label: VALUES.get(label, "x") for label in own}
            for bound in ("0.1", "1", "+Inf") if name.endswith("_bucket") else ("",):
                marked = values | ({"le": bound} if bound else {})
                inner = ",".join(f'{label}="{text}"' for label, text in marked.items())
                lines.append(f"{name}{{{inner}}}")
    return lines


class Exporter(BaseHTTPRequestHandler):
    """A server whose series all grow."""

    def do_GET(self) -> None:
        page = "".join(f"{line} {time.monotonic()}\n" for line in exposed())
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus with our configuration that scrapes an `Exporter` every two seconds."""
    binary = program("prometheus", DEBIAN)
    folder = tmp_path_factory.mktemp("prometheus")
    exporter = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    threading.Thread(target=exporter.serve_forever, daemon=True).start()
    config = load(PROMETHEUS / "prometheus.yml")
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(PROMETHEUS / "rules/*.yml")]
    targets = [f"127.0.0.1:{exporter.server_address[1]}"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: bool(ask(url, "query", query="divserve_engine_up")["result"]))
        yield url
    finally:
        process.terminate()
        process.wait(30)
        exporter.shutdown()
        exporter.server_close()


def ask(url: str, path: str, **parameters: str) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=10) as answer:
        return json.load(answer)["data"]


def wait_for(done: Callable[[], bool]) -> None:
    """Returns once `done` is true; Prometheus may take a while to listen.

    Raises:
        TimeoutError: it is not true within a minute.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            if done():
                return
        time.sleep(0.3)
    raise TimeoutError


def test_prometheus_answers_every_query(prometheus: str) -> None:
    """With data: a query whose sides share no labels is valid, but always empty."""
    unanswered = list(SHOWN)

    def answered() -> bool:
        # A rate needs two scrapes.
        unanswered[:] = [
            name
            for name in unanswered
            if not ask(prometheus, "query", query=without_variables(SHOWN[name]))["result"]
        ]
        return not unanswered

    with suppress(TimeoutError):
        wait_for(answered)
    assert unanswered == []


def test_an_unguided_step_raises_the_alert(prometheus: str) -> None:
    def firing() -> bool:
        alerts = ask(prometheus, "alerts")["alerts"]
        return any(
            alert["labels"]["alertname"] == "DivserveUnguidedSteps" and alert["state"] == "firing"
            for alert in alerts
        )

    wait_for(firing)
