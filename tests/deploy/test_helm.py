"""The Helm chart: its values' schema and effects; test_kubernetes checks the rendered objects."""

from __future__ import annotations

import copy
import subprocess
from typing import Any

import jsonschema
import pytest

from divserve import __version__
from tests.support.deploy import (
    CHART,
    DEPLOY,
    SETUP,
    VALUES,
    container,
    load,
    load_all,
    of_kind,
    program,
    render,
    rendered,
)

SCHEMA = load(CHART / "values.schema.json")
DEFAULTS = load(CHART / "values.yaml")

BAD: dict[str, Any] = {
    "a name that is not there": {"replica": 1},
    "a name that is not there, deeper": {"apiKeys": {"keys": ["k"]}},
    "a number as text": {"replicas": "two"},
    "fewer GPUs than none": {"gpus": -1},
    "half a GPU": {"gpus": 0.5},
    "an unknown log format": {"logFormat": "xml"},
    "a flag that a value sets": {"args": ["--port=9000"]},
    "a key in the open": {"args": ["--api-key", "k"]},
    "an address without a scheme": {"autoscaling": {"keda": {"prometheus": "prometheus:9090"}}},
    "KEDA without a server whose queue it could ask": {"autoscaling": {"keda": {"minReplicas": 0}}},
    "a port beyond the last": {"service": {"port": 65536}},
    "an interval without a unit": {"serviceMonitor": {"interval": "15"}},
    "a mode that no volume has": {"cache": {"accessMode": "ReadWriteSome"}},
    "a size in words": {"sharedMemory": "a lot"},
    "a Secret's name that Kubernetes refuses": {"apiKeys": {"existingSecret": "My Secret"}},
}


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Helm's merge: objects are merged, anything else is replaced."""

    def merge(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            return below | {key: merge(below.get(key), value) for key, value in above.items()}
        return above

    return merge(copy.deepcopy(DEFAULTS), values)  # type: ignore[no-any-return]


def closed(schema: Any, path: str = "") -> list[str]:
    """Objects of the schema with properties that also accept unknown ones."""
    found = []
    if isinstance(schema, dict):
        if "properties" in schema and "required" not in schema:
            found = [path] if schema.get("additionalProperties") is not False else []
        for key, value in schema.items():
            found += closed(value, f"{path}/{key}")
    return found


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert closed(SCHEMA) == []


@pytest.mark.parametrize("name", VALUES)
def test_good_values(name: str) -> None:
    jsonschema.validate(with_defaults(VALUES[name]), SCHEMA)


@pytest.mark.parametrize("values", BAD.values(), ids=BAD.keys())
def test_bad_values(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(with_defaults(values), SCHEMA)


def test_every_value_has_a_schema() -> None:
    def missing(values: Any, schema: Any) -> list[str]:
        if not isinstance(values, dict) or "properties" not in schema:
            return []
        known = schema["properties"]
        found = [key for key in values if key not in known]
        for key in values.keys() & known.keys():
            found += missing(values[key], known[key])
        return found

    assert missing(DEFAULTS, SCHEMA) == []


def test_helm_checks_values_itself() -> None:
    helm = pytest.importorskip("helm_python", reason=f"Helm's library is not here: {SETUP}")
    for values in BAD.values():
        with pytest.raises(helm.HelmValuesError):
            render({"model": "m", **values})


def test_helm_lint() -> None:
    helm = pytest.importorskip("helm_python", reason=f"Helm's library is not here: {SETUP}")
    found = helm.lint(str(CHART), {"model": "m"}, quiet=True).get("messages") or []
    assert [str(message) for message in found if "icon is recommended" not in str(message)] == []


def test_the_helm_command_renders_the_same() -> None:
    helm = program("helm", "Helm's command line")
    command = [helm, "template", "r", str(CHART), "--namespace", "ns", "--set", "model=m"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)

    def by_name(documents: Any) -> Any:
        return sorted(documents, key=lambda each: (each["kind"], each["metadata"]["name"]))

    assert by_name(load_all(made.stdout)) == by_name(rendered("defaults"))


def test_a_model_must_be_named() -> None:
    with pytest.raises(Exception, match="name the model to serve"):
        render({})


def test_two_autoscalers_are_refused() -> None:
    both = {"hpa": {"enabled": True}, "keda": {"enabled": True}}
    with pytest.raises(Exception, match="fight over the replicas"):
        render({"model": "m", "autoscaling": both})


def test_a_grace_period_that_cuts_the_drain_short_is_refused() -> None:
    shutdown = {"preStopSeconds": 10, "drainSeconds": 60, "terminationGracePeriodSeconds": 70}
    with pytest.raises(Exception, match=r"must be more than .* \(70\)"):
        render({"model": "m", "shutdown": shutdown})


@pytest.mark.parametrize(
    ("name", "kind"), [("hpa", "HorizontalPodAutoscaler"), ("full", "ScaledObject")]
)
def test_an_autoscaler_follows_the_queue_and_owns_the_replicas(name: str, kind: str) -> None:
    objects = rendered(name)
    deployment, scaler = of_kind(objects, "Deployment"), of_kind(objects, kind)
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "num_requests_waiting" in str(scaler["spec"])


def test_keda_asks_for_this_release_s_queue() -> None:
    (trigger,) = of_kind(rendered("full"), "ScaledObject")["spec"]["triggers"]
    service = of_kind(rendered("full"), "Service")["metadata"]["name"]
    assert trigger["metadata"]["query"] == (
        f'sum(vllm:num_requests_waiting{{namespace="ns", service="{service}"}})'
    )


def test_keda_does_not_take_a_missing_series_for_an_empty_queue() -> None:
    (trigger,) = of_kind(rendered("full"), "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_the_strategy_names_no_more_than_its_type_takes() -> None:
    rolling = of_kind(rendered("defaults"), "Deployment")["spec"]["strategy"]
    assert rolling == DEFAULTS["strategy"]
    assert of_kind(rendered("recreate"), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}


def test_a_new_chart_restarts_no_pod() -> None:
    deployment = of_kind(rendered("defaults"), "Deployment")
    template = deployment["spec"]["template"]["metadata"]["labels"]
    assert template == deployment["spec"]["selector"]["matchLabels"]
    assert deployment["metadata"]["labels"].keys() - template == {
        "helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cache", "surge"),
    [
        ({}, 1),
        ({"existingClaim": "c"}, 0),
        ({"existingClaim": "c", "accessMode": "ReadWriteOncePod"}, 0),
        ({"existingClaim": "c", "accessMode": "ReadWriteMany"}, 1),
    ],
)
def test_a_cache_for_one_node_is_given_up_first(cache: dict[str, str], surge: int) -> None:
    objects = render({"model": "m", "cache": cache})
    assert of_kind(objects, "Deployment")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge},
    }


def test_ids_that_the_cluster_assigns() -> None:
    for name, pods in (("defaults", 2), ("openshift", 2)):
        found = [
            document["spec"].get("template", document)["spec"]["securityContext"]
            for document in rendered(name)
            if document["kind"] in ("Deployment", "Pod")
        ]
        assert len(found) == pods
        for context in found:
            assert context["runAsNonRoot"] is True
            fixed = {"runAsUser", "runAsGroup", "fsGroup"} & context.keys()
            assert len(fixed) == (0 if name == "openshift" else 3)


def test_a_monitor_without_a_key_is_refused() -> None:
    keys = {"existingSecret": "keys", "metricsWithoutKey": False}
    monitored = {"model": "m", "apiKeys": keys, "serviceMonitor": {"enabled": True}}
    with pytest.raises(Exception, match="serviceMonitor has no API key"):
        render(monitored)


def test_what_else_may_be_reached() -> None:
    *_, last = of_kind(rendered("full"), "NetworkPolicy")["spec"]["egress"]
    assert last == {"ports": [{"port": 4317, "protocol": "TCP"}]}
    assert len(of_kind(rendered("defaults"), "NetworkPolicy")["spec"]["egress"]) == 2


def test_gpus() -> None:
    two = container("full")
    assert two["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": 2}
    assert "--tensor-parallel-size=2" in two["args"]
    assert two["image"].endswith("-cuda")
    none = container("hpa")
    assert "limits" not in (none["resources"] or {})
    assert none["image"].endswith("-cpu")


def test_prometheus_finds_the_service() -> None:
    objects = rendered("full")
    monitor, service = of_kind(objects, "ServiceMonitor")["spec"], of_kind(objects, "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    # The job that the alert rules name.
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "divserve"


def test_rules_and_dashboard_are_those_of_compose() -> None:
    objects = rendered("full")
    assert of_kind(objects, "PrometheusRule")["spec"] == load(
        DEPLOY / "prometheus/rules/divserve.yml"
    )
    (text,) = of_kind(objects, "ConfigMap")["data"].values()
    assert text == (DEPLOY / "grafana/dashboards/divserve.json").read_text().rstrip()


def test_the_test_pod_may_call_the_service() -> None:
    policy = of_kind(rendered("full"), "NetworkPolicy")["spec"]
    pod = of_kind(rendered("full"), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    labels = pod["metadata"]["labels"].items()
    peers = [peer for rule in policy["ingress"] for peer in rule["from"]]
    own = [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]
    assert any(selector.items() <= labels for selector in own)
    # Nor may it be one of the pods behind the service.
    selector = of_kind(rendered("full"), "Service")["spec"]["selector"]
    assert not selector.items() <= labels


def test_the_test_pod_runs_the_script() -> None:
    (only,) = of_kind(rendered("full"), "Pod")["spec"]["containers"]
    assert only["args"][0].strip() == (CHART / "files/guided_request.py").read_text().strip()
    assert {entry["name"]: entry["value"] for entry in only["env"]} == {
        "URL": "http://r-divserve:8000",
        "TIMEOUT": "120",
        "API_KEY_FILE": "/etc/divserve/api-keys",
    }


def test_versions() -> None:
    chart = load(CHART / "Chart.yaml")
    assert chart["appVersion"] == chart["version"] == __version__
