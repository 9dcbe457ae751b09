"""The Ray Serve application: its configuration, and two real replicas on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.deploy import CHART, DEPLOY, SETUP, load, load_all, manifests, of_kind
from tests.support.models import ROOT
from tests.support.platform import cpu_only
from tests.support.ray_serve import serving_in_ray

RAY = DEPLOY / "ray"
KEY = "ray-key"
METRICS = 19_400
"""First port of the replicas' own metrics: fixed, because two in a row must be free."""
DOCUMENT = "The tower now stands in Berlin."

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason=f"Ray Serve is not here: {SETUP}"
)
without_gpu = cpu_only("the replicas of this file have no GPU")


def config() -> Any:
    return load(RAY / "config.yaml")


def service() -> Any:
    return of_kind(load_all((RAY / "rayservice.yaml").read_text()), "RayService")


def in_ray(code: str, *arguments: str) -> str:
    """The output of a program that imports Ray, run in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_rayservice_serves_the_same_configuration() -> None:
    (inner,) = load_all(service()["spec"]["serveConfigV2"])
    assert inner == config()


def test_a_worker_has_what_a_replica_asks_for() -> None:
    cluster = service()["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    (application,) = config()["applications"]
    options = application["args"]
    (container,) = group["template"]["spec"]["containers"]
    requests = container["resources"]["requests"]
    assert requests["nvidia.com/gpu"] >= options["gpus"]
    assert int(requests["cpu"]) > options["cpus"]
    assert (group["minReplicas"], group["maxReplicas"]) == (
        options["replicas"],
        options["max_replicas"],
    )
    assert group["template"]["spec"]["terminationGracePeriodSeconds"] > options["drain_timeout_s"]
    assert {"name": "metrics", "containerPort": options["metrics_port"]} in container["ports"]
    assert {"name": "serve", "containerPort": config()["http_options"]["port"]} in container[
        "ports"
    ]


def test_the_metrics_of_every_worker_are_scraped() -> None:
    monitor = of_kind(load_all((RAY / "rayservice.yaml").read_text()), "PodMonitor")["spec"]
    (group,) = service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    labels = group["template"]["metadata"]["labels"].items()
    assert monitor["selector"]["matchLabels"].items() <= labels


def test_only_the_cluster_and_its_operator_reach_what_has_no_password() -> None:
    policy = of_kind(load_all((RAY / "rayservice.yaml").read_text()), "NetworkPolicy")["spec"]
    cluster = service()["spec"]["rayClusterConfig"]
    head, (group,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    selected = policy["podSelector"]["matchLabels"]
    for spec in (head, group):
        assert selected.items() <= spec["template"]["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    own, *others = policy["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": selected}}]}
    (container,) = head["template"]["spec"]["containers"]
    bare = {port["containerPort"] for port in container["ports"]}
    assert bare == {6379, 8265, 10001}
    for rule in others:
        open_ = bare & {port["port"] for port in rule["ports"]}
        operator = {"app.kubernetes.io/name": "kuberay-operator"}
        peers = [peer.get("podSelector", {}).get("matchLabels") for peer in rule["from"]]
        assert open_ == ({8265} if peers == [operator] else set())


def test_replicas_have_the_token_of_the_hub() -> None:
    (group,) = service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    (token,) = [entry for entry in container["env"] if entry["name"] == "HF_TOKEN"]
    plain = of_kind(manifests(), "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert token in plain


@needs_ray
def test_ray_accepts_the_configuration() -> None:
    code = (
        "import sys, json; from ray.serve.schema import ServeDeploySchema;"
        "schema = ServeDeploySchema.model_validate(json.loads(sys.argv[1]));"
        "from deploy.ray.serve_app import build;"
        "app = build(schema.applications[0].args);"
        "deployment = app._bound_deployment;"
        "print(deployment.name, deployment.ray_actor_options['num_gpus'],"
        " deployment._deployment_config.autoscaling_config.max_replicas)"
    )
    assert in_ray(code, json.dumps(config())).split() == ["divserve", "1.0", "8"]


@needs_ray
@pytest.mark.parametrize(
    "args",
    [
        {},
        {"argv": []},
        {"argv": ["m"], "replica": 2},
        {"argv": ["m"], "replicas": 3, "max_replicas": 2},
        {"argv": ["m"], "gpus": -1},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(args: dict[str, Any]) -> None:
    code = (
        "import sys, json, pydantic; from deploy.ray.serve_app import Options\n"
        "try: Options.model_validate(json.loads(sys.argv[1]))\n"
        "except pydantic.ValidationError: print('refused')"
    )
    assert in_ray(code, json.dumps(args)).strip() == "refused"


@needs_ray
def test_options_of_the_command_line() -> None:
    """`serve run … argv=…` passes strings."""
    code = (
        "import sys, json; from deploy.ray.serve_app import Options\n"
        "found = Options.model_validate(json.loads(sys.argv[1]))\n"
        "print(found.argv, found.environment, found.replicas)"
    )
    texts = {"argv": '["m", "--seed=1"]', "environment": '{"A": "b"}', "replicas": "2"}
    assert in_ray(code, json.dumps(texts)).strip() == "['m', '--seed=1'] {'A': 'b'} 2"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "api-keys"
    file.write_text(f"# for the tests\ntests:{KEY}\n")
    return file


@pytest.fixture(scope="module")
def url(
    tiny_with_tokenizer: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of two replicas behind Ray Serve's proxy."""
    options = {
        "argv": [
            str(tiny_with_tokenizer),
            "--served-model-name=tiny",
            "--max-model-len=512",
            f"--api-key-file={keys}",
        ],
        "replicas": 2,
        "cpus": 0.5,
        "metrics_port": METRICS,
    }
    with serving_in_ray(options, tmp_path_factory.mktemp("ray") / "log.txt") as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def guided(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": f"{DOCUMENT} Where does it stand?"}],
        max_tokens=8,
        temperature=0,
        extra_body={"decoding": {"method": "adacad", "guide": {"without": DOCUMENT}}},
        **options,
    )


def answers_of_replicas() -> list[float]:
    """How many guided tokens each replica has made, according to its own metrics."""
    found = []
    for port in (METRICS, METRICS + 1):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        totals = [line for line in lines if line.startswith("divserve_guided_steps_total ")]
        found.append(float(totals[0].split()[1]))
    return found


@needs_ray
@without_gpu
@pytest.mark.long
def test_guided_requests_reach_both_replicas(client: openai.OpenAI) -> None:
    before = answers_of_replicas()
    texts = set()
    for _ in range(12):
        answer = guided(client)
        choice = answer.choices[0]
        assert choice.decoding["applied_steps"] == answer.usage.completion_tokens == 8
        texts.add(choice.message.content)
    # Greedy, and the same model everywhere.
    assert len(texts) == 1
    made = [after - start for after, start in zip(answers_of_replicas(), before, strict=True)]
    assert sum(made) == 12 * 8
    assert all(made)


@needs_ray
@without_gpu
@pytest.mark.long
def test_a_stream_comes_in_pieces(client: openai.OpenAI) -> None:
    chunks = [chunk for chunk in guided(client, stream=True) if chunk.choices]
    assert len(chunks) > 4
    assert chunks[-1].choices[0].decoding["applied_steps"] == 8


@needs_ray
@without_gpu
@pytest.mark.long
def test_errors_are_divserve_s(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "x"}],
            extra_body={"decoding": {"method": "adacad", "guide": {"without": "not there"}}},
        )
    assert refused.value.param == "decoding.guide.without"


@needs_ray
@without_gpu
@pytest.mark.long
def test_strangers_are_refused(url: str) -> None:
    stranger = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        guided(stranger)


@needs_ray
@without_gpu
@pytest.mark.long
def test_the_chart_s_test_passes_against_a_real_server(url: str, keys: Path) -> None:
    """The program that `helm test` runs in the cluster."""
    done = subprocess.run(
        [sys.executable, CHART / "files/guided_request.py"],
        env={**os.environ, "URL": url, "API_KEY_FILE": str(keys), "TIMEOUT": "60"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny: 8 tokens, all guided")
