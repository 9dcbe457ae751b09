"""The Compose files: the schema of the specification, and what the services promise each other."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.deploy import DEPLOY, load

FILES = sorted(DEPLOY.glob("compose*.yaml"))


@pytest.fixture(scope="module")
def schema() -> Any:
    """The Compose specification's, out of the package check-jsonschema."""
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
    assert len(FILES) == 3
    assert all(set(load(file)["services"]) <= set(services) for file in FILES)


def test_only_this_machine_is_listened_to(services: Any) -> None:
    """Nothing here has a password."""
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
