"""Objects of the Prometheus operator and of KEDA: the models that cloudcoil makes of their CRDs."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.support.deploy import DEPLOY, SETUP, load_all, of_kind, rendered

MODULES = {
    "ServiceMonitor": "prometheus_operator.v1",
    "PodMonitor": "prometheus_operator.v1",
    "PrometheusRule": "prometheus_operator.v1",
    "ScaledObject": "keda.v1alpha1",
}
by_kind = pytest.mark.parametrize("kind", MODULES)


def objects() -> list[dict[str, Any]]:
    """The objects of the chart and of the RayService."""
    return [*rendered("full"), *load_all((DEPLOY / "ray/rayservice.yaml").read_text("utf-8"))]


def schema(kind: str) -> dict[str, Any]:
    """The operator's schema of its kind, closed to fields that it does not name."""
    module = pytest.importorskip(
        f"cloudcoil.models.{MODULES[kind]}", reason=f"the operators' schemas are not here: {SETUP}"
    )
    text = json.dumps(getattr(module, kind).model_json_schema(by_alias=True))
    # Python requires flags at the start of a pattern, Go does not.
    made: dict[str, Any] = json.loads(text.replace('"^(?i)', '"(?i)^'))
    for each in [made, *made["$defs"].values()]:
        if "properties" in each:
            each.setdefault("additionalProperties", False)
    return made


@by_kind
def test_an_object_obeys_its_operator_s_schema(kind: str) -> None:
    found, rules = of_kind(objects(), kind), schema(kind)
    assert found["apiVersion"] == rules["properties"]["apiVersion"]["default"]
    jsonschema.validate(found, rules)


@by_kind
def test_the_schema_notices_misspelt_and_mistyped_fields(kind: str) -> None:
    found, rules = of_kind(objects(), kind), schema(kind)
    for wrong in ({**found["spec"], "labelz": []}, list(found["spec"])):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**found, "spec": wrong}, rules)


def test_every_other_kind_is_kubernetes_own_or_ray_s() -> None:
    """No package has KubeRay's schema; in test_ray, Ray itself reads the Serve configuration."""
    groups = {each["apiVersion"].rpartition("/")[0]: each["kind"] for each in objects()}
    own = {group for group in groups if not group or group.endswith("k8s.io") or "." not in group}
    assert {groups[group] for group in groups.keys() - own} - MODULES.keys() == {"RayService"}
