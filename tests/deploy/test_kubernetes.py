"""Kubernetes objects, plain and from the chart: Kubernetes' own schemas, and our promises."""

from __future__ import annotations

import subprocess
import warnings
from typing import Any

import pytest

from tests.support.deploy import (
    DEPLOY,
    MANIFESTS,
    SETUP,
    VALUES,
    load,
    load_all,
    manifests,
    of_kind,
    program,
    rendered,
)

CUSTOM = {"ServiceMonitor", "PrometheusRule", "PodMonitor", "ScaledObject", "RayService"}
"""Kinds that belong to operators, whose schemas are not in the package."""
VERSIONS = ("1.27", "1.34", "1.37")
ORIGINS = ["plain", *VALUES]
by_origin = pytest.mark.parametrize("origin", ORIGINS)


def objects(origin: str) -> list[dict[str, Any]]:
    return manifests() if origin == "plain" else list(rendered(origin))


def container(origin: str) -> tuple[Any, Any]:
    """The pod of the Deployment and its only container."""
    pod = of_kind(objects(origin), "Deployment")["spec"]["template"]["spec"]
    (only,) = pod["containers"]
    return pod, only


def flag(arguments: list[str], name: str) -> str:
    (value,) = [a.partition("=")[2] for a in arguments if a.startswith(f"--{name}=")]
    return value


def validate(document: dict[str, Any], version: str) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason=f"Kubernetes' schemas are not here: {SETUP}"
    )
    with warnings.catch_warnings():
        # Its definitions have ids that newer versions of jsonschema do not resolve.
        warnings.simplefilter("ignore", DeprecationWarning)
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@by_origin
def test_objects_obey_kubernetes_schemas(origin: str, version: str) -> None:
    checked = [each for each in objects(origin) if each["kind"] not in CUSTOM]
    assert len(checked) >= 5
    for each in checked:
        validate(each, version)


def test_schemas_are_strict() -> None:
    service = of_kind(manifests(), "Service")
    with pytest.raises(Exception, match="prots"):
        validate({**service, "spec": {**service["spec"], "prots": []}}, VERSIONS[0])


@by_origin
def test_probes(origin: str) -> None:
    _, only = container(origin)
    paths = {
        name: only[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {"startup": "/ready", "liveness": "/live", "readiness": "/ready"}
    assert all(only[f"{name}Probe"]["httpGet"]["port"] == "http" for name in paths)
    startup = only["startupProbe"]
    patience = startup["periodSeconds"] * startup["failureThreshold"]
    assert patience >= 600
    assert of_kind(objects(origin), "Deployment")["spec"]["progressDeadlineSeconds"] > patience


@by_origin
def test_a_pod_may_take_longer_to_stop_than_it_drains(origin: str) -> None:
    pod, only = container(origin)
    name, pre_stop = only["lifecycle"]["preStop"]["exec"]["command"]
    assert name == "sleep"
    drain = float(flag(only["args"], "drain-timeout"))
    assert pod["terminationGracePeriodSeconds"] > int(pre_stop) + drain


@by_origin
def test_pods_are_restricted(origin: str) -> None:
    """What the restricted Pod Security Standard requires, and a read-only root filesystem."""
    pods = [(document, container_of(document)) for document in objects(origin) if pod_of(document)]
    assert pods
    for document, only in pods:
        pod = pod_of(document)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def pod_of(document: dict[str, Any]) -> Any:
    if document["kind"] == "Pod":
        return document["spec"]
    return document.get("spec", {}).get("template", {}).get("spec")


def container_of(document: dict[str, Any]) -> Any:
    return (pod_of(document) or {"containers": [None]})["containers"][0]


@by_origin
def test_selectors_find_the_pods(origin: str) -> None:
    found = objects(origin)
    deployment = of_kind(found, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["selector"]["matchLabels"],
        of_kind(found, "Service")["spec"]["selector"],
        of_kind(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels for selector in selectors)


@by_origin
def test_mounted_volumes_are_there(origin: str) -> None:
    for document in objects(origin):
        if pod := pod_of(document):
            volumes = {volume["name"] for volume in pod.get("volumes", ())}
            mounts = {mount["name"] for mount in container_of(document).get("volumeMounts", ())}
            assert mounts == volumes


@pytest.mark.parametrize("origin", ["plain", "full"])
def test_api_keys_are_a_file_of_a_secret(origin: str) -> None:
    pod, only = container(origin)
    path = flag(only["args"], "api-key-file")
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "api-keys"]
    (mount,) = [mount for mount in only["volumeMounts"] if mount["name"] == "api-keys"]
    assert path == f"{mount['mountPath']}/api-keys"
    # A file mounted with subPath would not follow the Secret, so keys could not be changed.
    assert "subPath" not in mount
    assert volume["secret"]["secretName"]
    assert not any("api-key=" in argument for argument in only["args"])


@pytest.mark.parametrize("origin", ["plain", "full"])
def test_a_token_of_the_hub_is_a_secret(origin: str) -> None:
    _, only = container(origin)
    (token,) = [entry for entry in only["env"] if entry["name"] == "HF_TOKEN"]
    secret = token["valueFrom"]["secretKeyRef"]
    assert secret["key"] == "token"
    # Whoever needs none has no such Secret; the chart asks for one only where a value names it.
    assert secret.get("optional", False) == (origin == "plain")


@by_origin
def test_the_network_is_closed_both_ways(origin: str) -> None:
    policy = of_kind(objects(origin), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] for rule in policy["ingress"])
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == ({53, 4317} if origin == "full" else {53, 443})


def test_kustomize_makes_the_manifests() -> None:
    kubectl = program("kubectl", SETUP)
    made = subprocess.run(
        [kubectl, "kustomize", MANIFESTS], capture_output=True, text=True, check=True
    )
    found = load_all(made.stdout)
    assert len(found) == len(manifests())
    for each in found:
        validate(each, VERSIONS[-1])
        assert each["metadata"]["namespace"] == "divserve"


def test_kustomization_lists_every_file() -> None:
    listed = load(MANIFESTS / "kustomization.yaml")["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(p.name for p in MANIFESTS.iterdir())


def test_every_yaml_and_json_file_of_deploy_can_be_read() -> None:
    """Except for the chart's templates, which Helm reads."""
    files = [
        path
        for ending in ("yaml", "yml", "json")
        for path in DEPLOY.rglob(f"*.{ending}")
        if "templates" not in path.parts
    ]
    assert len(files) > 15
    for path in files:
        assert load_all(path.read_text(encoding="utf-8")) if path.suffix != ".json" else load(path)
