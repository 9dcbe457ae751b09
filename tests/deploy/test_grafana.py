"""The Grafana dashboard and its provisioning; there is no Grafana here to load them into."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest

from tests.support.deploy import DEPLOY, SETUP, load

GRAFANA = DEPLOY / "grafana"
DASHBOARD = load(GRAFANA / "dashboards/divserve.json")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TEXT = (GRAFANA / "dashboards/divserve.json").read_text()

SHOWN = [
    "divserve_requests_total", "divserve_guided_steps_total", "divserve_unguided_steps_total",
    "divserve_kl_nats_bucket", "divserve_jsd_nats_bucket", "divserve_entropy_nats_bucket",
    "divserve_temperature_bucket", "divserve_guide_prompt_tokens_bucket",
    "divserve_pair_wait_seconds_bucket", "divserve_broken_pairs_total", "divserve_switches_total",
    "divserve_switched_tokens_total", "divserve_look_back_alarms_total",
    "divserve_draft_proposed_tokens_total", "divserve_draft_accepted_tokens_total",
    "divserve_draft_rounds_total",
    "divserve_kernel_seconds_bucket", "divserve_http_requests_total",
    "divserve_http_request_seconds_bucket", "divserve_engine_up",
    "vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket",
    "vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc",
]  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_metric_is_shown(name: str) -> None:
    assert name in TEXT


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """The paths where the first of two JSON values has something that the second lacks."""
    if isinstance(before, dict) and isinstance(after, dict):
        here = [f"{path}/{key}" for key in before.keys() - after.keys()]
        inner = [(before[key], after[key], key) for key in before.keys() & after.keys()]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        here, inner = [], list(zip(before, after, range(len(before)), strict=True))
    else:
        return [] if before == after else [path]
    return here + [each for old, new, key in inner for each in lost(old, new, f"{path}/{key}")]


def unknown_to_grafana(dashboard: Any) -> list[str]:
    """Fields that Grafana's own library drops: it reads only those that Grafana knows."""
    plugins = pytest.importorskip(
        "grafana_foundation_sdk.cog.plugins", reason=f"Grafana's library is not here: {SETUP}"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    read = Dashboard.from_json(dashboard)
    return sorted(lost(dashboard, json.loads(json.dumps(read, cls=JSONEncoder))))


def test_grafana_s_library_knows_every_field() -> None:
    # An annotation may have fields that its data source reads; Prometheus reads only this one.
    assert unknown_to_grafana(DASHBOARD) == ["/annotations/list/0/titleFormat"]


def test_grafana_s_library_notices_misspelt_fields() -> None:
    wrong = copy.deepcopy(DASHBOARD)
    number = wrong["panels"].index(PANELS[0])
    wrong["panels"][number]["options"]["colourMode"] = "value"
    wrong["panels"][number]["targets"][0]["legend"] = ""
    wrong["refreshed"] = "15s"
    assert unknown_to_grafana(wrong)[1:] == [
        f"/panels/{number}/options/colourMode",
        f"/panels/{number}/targets/0/legend",
        "/refreshed",
    ]


def test_panels_have_their_own_place_and_number() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_panels_show_something() -> None:
    for panel in PANELS:
        assert panel["type"] in ("stat", "timeseries", "heatmap")
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert all(target["expr"] for target in panel["targets"])


def test_every_query_obeys_the_variables() -> None:
    """A query that ignores them silently mixes servers."""
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            metrics = target["expr"].count("divserve_") + target["expr"].count("vllm:")
            assert target["expr"].count('job=~"$job", instance=~"$instance"') == metrics


def test_unguided_steps_are_red_above_zero() -> None:
    (panel,) = [panel for panel in PANELS if panel["title"] == "Unguided steps"]
    steps: list[dict[str, Any]] = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["color"] for step in steps] == ["green", "red"]
    assert 0 < steps[1]["value"] < 1


def test_variables() -> None:
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "job", "instance"]


def test_provisioning_leads_to_the_dashboard_and_to_prometheus() -> None:
    services = load(DEPLOY / "compose.yaml")["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    (provider,) = load(GRAFANA / "provisioning/dashboards/divserve.yaml")["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    (source,) = load(GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"].partition("://")[2].partition(":")[0] in services
