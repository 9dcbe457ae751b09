"""The Compose files: the specification's schema, and what the services expect of each other."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.deploy import DEPLOY, SETUP, load, program

FILES = sorted(DEPLOY.glob("compose*.yaml"))


@pytest.fixture(scope="module")
def schema() -> Any:
    """The schema of the Compose specification, from the package check-jsonschema."""
    files = metadata.files("check-jsonschema") or []
    (found,) = [file for file in files if file.name == "compose-spec.json"]
    return json.loads(found.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> Any:
    return load(DEPLOY / "compose.yaml")["services"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_obeys_the_specification(file: Path, schema: Any) -> None:
    jsonschema.validate(load(file), schema)


def test_the_specification_is_checked_at_all(schema: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"divserve": {"prots": ["8000:8000"]}}}, schema)


def test_overrides_name_services_that_there_are(services: Any) -> None:
    assert len(FILES) == 4
    assert all(set(load(file)["services"]) <= set(services) for file in FILES)


def merged(folder: Path, *files: str, **variables: str) -> Any:
    """The services that podman-compose makes of these files; it asks Podman only for its
    version."""
    compose = program("podman-compose", SETUP)
    podman = folder / "podman"
    podman.write_text("#!/bin/sh\necho podman version 5.0.0\n")
    podman.chmod(0o755)
    options = [option for file in files for option in ("-f", str(DEPLOY / file))]
    done = subprocess.run(
        [compose, *options, "config"],
        env={**os.environ, **variables, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return yaml.safe_load(done.stdout)["services"]


def test_the_override_for_cuda(tmp_path: Path, services: Any) -> None:
    both = merged(tmp_path, "compose.yaml", "compose.cuda.yaml", MODEL="m", MODELS="/m")
    made, plain = both["divserve"], services["divserve"]
    assert made["build"]["dockerfile"] == "deploy/Dockerfile"
    assert Path(made["build"]["context"]) == DEPLOY.parent
    assert made["command"][:2] == ["serve", "m"]
    assert "/opt/models" not in str(made)
    assert made["volumes"] == [*plain["volumes"], "/m:/models:ro"]
    for name in ("read_only", "cap_drop", "security_opt", "tmpfs", "ports", "stop_grace_period"):
        assert made[name] == plain[name]


def test_the_override_for_keys(tmp_path: Path, services: Any) -> None:
    """The override's shell passes the command on."""
    both = merged(tmp_path, "compose.yaml", "compose.keys.yaml", API_KEY_FILE="./api-keys")
    made = both["divserve"]
    shell = [word.replace("divserve", "echo", 1) for word in made["entrypoint"]]
    told = subprocess.run([*shell, *made["command"]], capture_output=True, text=True, check=True)
    words = [*services["divserve"]["command"], "--api-key-file", "/run/secrets/api-keys"]
    assert told.stdout.split() == [*words, "--metrics-without-key"]


def test_a_token_is_a_file(services: Any) -> None:
    """Not a variable, which `docker inspect` shows."""
    file = load(DEPLOY / "compose.hub.yaml")
    (secret,) = file["secrets"]
    assert file["services"]["divserve"] == {
        "environment": {"HF_TOKEN_PATH": f"/run/secrets/{secret}"},
        "secrets": [secret],
    }
    assert "environment" not in services["divserve"]


def test_variables_without_a_default_must_be_set(tmp_path: Path) -> None:
    for file in ("compose.cuda.yaml", "compose.keys.yaml", "compose.hub.yaml"):
        with pytest.raises(subprocess.CalledProcessError):
            merged(tmp_path, "compose.yaml", file, MODEL="", API_KEY_FILE="", HF_TOKEN_FILE="")


def test_only_this_machine_is_listened_to(services: Any) -> None:
    """No service here has a password."""
    ports = [port for service in services.values() for port in service["ports"]]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_docker_waits_longer_than_the_server_drains(services: Any) -> None:
    for file in (DEPLOY / "compose.yaml", DEPLOY / "compose.cuda.yaml"):
        (drain,) = [
            flag.partition("=")[2]
            for flag in load(file)["services"]["divserve"]["command"]
            if flag.startswith("--drain-timeout=")
        ]
        assert int(services["divserve"]["stop_grace_period"].rstrip("s")) > int(drain) + 5


def test_the_server_is_confined(services: Any) -> None:
    service = services["divserve"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_mounted_files_are_here_and_read_only(services: Any) -> None:
    mounts = [
        volume
        for service in services.values()
        for volume in service["volumes"]
        if volume.startswith("./")
    ]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (DEPLOY / source).exists()
        assert mode == "ro"


def test_prometheus_scrapes_the_service_by_its_name(services: Any) -> None:
    (job,) = load(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in services
    assert port == "8000"
    assert job["job_name"] == "divserve"
