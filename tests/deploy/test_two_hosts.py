"""The chart's server on two hosts: a head that serves HTTP, and nodes that only decode."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.deploy import of_kind, render, rendered

OBJECTS = "two hosts"


def pod(kind: str, suffix: str = "") -> Any:
    return of_kind(rendered(OBJECTS), kind, suffix)["spec"]["template"]


def only(template: Any) -> Any:
    (container,) = template["spec"]["containers"]
    return container


def chosen(selector: Any, labels: dict[str, str]) -> bool:
    """Whether a selector with labels and operators ``In`` chooses a pod."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def test_each_host_has_its_rank_and_knows_the_head() -> None:
    head, node = only(pod("Deployment")), only(pod("StatefulSet"))
    name = of_kind(rendered(OBJECTS), "Service", "-head")["metadata"]["name"]
    shared = {
        "--data-parallel-size=2", "--data-parallel-size-local=1",
        "--data-parallel-rpc-port=13345", "--tensor-parallel-size=2",
    }  # fmt: skip
    assert shared <= set(head["args"]) & set(node["args"])
    own = {"--host=0.0.0.0", "--port=8000", "--data-parallel-address=$(VLLM_HOST_IP)"}
    assert set(head["args"]) - set(node["args"]) == own
    assert set(node["args"]) - set(head["args"]) == {
        "--headless",
        "--data-parallel-start-rank=$(POD_INDEX)",
        f"--data-parallel-address={name}",
    }
    nodes = of_kind(rendered(OBJECTS), "StatefulSet")["spec"]
    assert (nodes["ordinals"], nodes["replicas"]) == ({"start": 1}, 1)
    for container, expanded in ((head, ["VLLM_HOST_IP"]), (node, ["VLLM_HOST_IP", "POD_INDEX"])):
        assert set(expanded) <= {entry["name"] for entry in container["env"]}


def test_only_the_head_gets_requests() -> None:
    head, node = (pod(kind)["metadata"]["labels"] for kind in ("Deployment", "StatefulSet"))
    for suffix in ("", "-head"):
        selector = {
            "matchLabels": of_kind(rendered(OBJECTS), "Service", suffix)["spec"]["selector"]
        }
        assert chosen(selector, head)
        assert not chosen(selector, node)
    assert "ports" not in only(pod("StatefulSet"))
    assert not any(key.endswith("Probe") for key in only(pod("StatefulSet")))


def test_the_nodes_find_a_head_that_waits_for_them() -> None:
    found = of_kind(rendered(OBJECTS), "Service", "-head")["spec"]
    assert found["publishNotReadyAddresses"] is True
    assert found["clusterIP"] == "None"
    # A second head could not have the nodes.
    strategy = of_kind(rendered(OBJECTS), "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "Recreate"}
    assert of_kind(rendered(OBJECTS), "StatefulSet")["spec"]["podManagementPolicy"] == "Parallel"


def test_hosts_talk_with_each_other_and_with_nobody_else() -> None:
    policy = of_kind(rendered(OBJECTS), "NetworkPolicy", "-hosts")["spec"]
    for kind in ("Deployment", "StatefulSet"):
        labels = pod(kind)["metadata"]["labels"]
        assert chosen(policy["podSelector"], labels)
        assert not chosen(policy["podSelector"], labels | {"app.kubernetes.io/instance": "other"})
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]
    to_each_other, *others = policy["egress"]
    assert to_each_other == {"to": [{"podSelector": policy["podSelector"]}]}
    assert {port["port"] for rule in others for port in rule["ports"]} == {53, 443}


def test_a_node_outlives_the_head_s_drain() -> None:
    head, node = pod("Deployment")["spec"], only(pod("StatefulSet"))
    (drain,) = (a for a in node["args"] if a.startswith("--drain-timeout="))
    slept = sum(
        int(only({"spec": each})["lifecycle"]["preStop"]["exec"]["command"][1]) * sign
        for each, sign in ((pod("StatefulSet")["spec"], 1), (head, -1))
    )
    assert slept == int(drain.partition("=")[2])
    assert head["terminationGracePeriodSeconds"] > slept


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"replicas": 2}, "has one replica"),
        ({"autoscaling": {"keda": {"enabled": True}}}, "has one replica"),
        ({"args": ["--headless"]}, "hosts sets --headless"),
        ({"args": ["--data-parallel-size=4"]}, "hosts sets --data-parallel-size=4"),
    ],
    ids=str,
)
def test_values_that_contradict_several_hosts(values: dict[str, Any], why: str) -> None:
    with pytest.raises(Exception, match=why):
        render({"model": "m", "hosts": 2, **values})


def test_one_host_has_none_of_it() -> None:
    assert "StatefulSet" not in {each["kind"] for each in rendered("defaults")}
    assert not any("data-parallel" in a for a in of_kind(rendered("defaults"), "Deployment")["spec"]
                   ["template"]["spec"]["containers"][0]["args"])  # fmt: skip
