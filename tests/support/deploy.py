"""What the tests of deploy/ share: its files, programs that check them, and the rendered chart."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.models import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "divserve"
MANIFESTS = DEPLOY / "kubernetes"
SETUP = "make test-deploy installs it (requirements/deploy.lock)"

FULL: dict[str, Any] = {
    "model": "/models/qwen",
    "servedModelName": "qwen",
    "args": ["--amateur", "drop:4"],
    "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "INFO"}],
    "gpus": 2,
    "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "64Gi"}},
    "apiKeys": {"existingSecret": "keys"},
    "hub": {"existingSecret": "hub"},
    "models": {"existingClaim": "models"},
    "cache": {"existingClaim": "cache"},
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "priorityClassName": "serving",
    "podAnnotations": {"team": "a"},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"c": "d"}}}],
        "allowHub": False,
        "egress": [{"ports": [{"port": 4317, "protocol": "TCP"}]}],
    },
    "autoscaling": {"keda": {"enabled": True}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
}
HPA: dict[str, Any] = {"model": "m", "gpus": 0, "autoscaling": {"hpa": {"enabled": True}}}
RECREATE: dict[str, Any] = {"model": "m", "strategy": {"type": "Recreate"}}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {"model": "m"},
    "full": FULL,
    "hpa": HPA,
    "recreate": RECREATE,
    "two hosts": yaml.safe_load((CHART.parent / "two-hosts.yaml").read_text(encoding="utf-8")),
    "openshift": {"model": "m", "podSecurity": {"assignedIds": True}},
}


def load(path: Path) -> Any:
    """The one document of a YAML or JSON file."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def load_all(text: str) -> list[dict[str, Any]]:
    """The non-empty documents of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def program(name: str, origin: str) -> str:
    """The path of a program beside this Python or on the PATH; skips the test if there is none."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: {origin}")
    return found


@functools.cache
def rendered(name: str) -> tuple[dict[str, Any], ...]:
    """The objects that Helm makes from the chart with the `VALUES` of this name, as release "r"."""
    return tuple(render(VALUES[name]))


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that Helm's own engine renders from the chart in the namespace "ns"."""
    helm = pytest.importorskip("helm_python", reason=f"Helm's library is not here: {SETUP}")
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="r", namespace="ns")
    return [
        document
        for path, text in files.items()
        if path.endswith(".yaml")
        for document in load_all(text)
    ]


def manifests() -> list[dict[str, Any]]:
    """The plain Kubernetes objects."""
    files = [path for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml"]
    return [load(path) for path in sorted(files)]


def of_kind(
    documents: list[dict[str, Any]] | tuple[dict[str, Any], ...], kind: str, suffix: str = ""
) -> Any:
    """The only document of its kind, or of several the one called ``divserve`` and `suffix`."""
    found = [document for document in documents if document["kind"] == kind]
    if len(found) > 1:
        name = f"divserve{suffix}"
        found = [each for each in found if each["metadata"]["name"].endswith(name)]
    (only,) = found
    return only


def container(name: str) -> Any:
    """The only container of the chart's Deployment, rendered with the `VALUES` of this name."""
    (only,) = of_kind(rendered(name), "Deployment")["spec"]["template"]["spec"]["containers"]
    return only
