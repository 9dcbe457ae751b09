"""The Dockerfiles: their structure, and hadolint's rules."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from divserve.startup.checks import VLLM_VERSION
from tests.support.deploy import DEPLOY, SETUP, program
from tests.support.models import ROOT

SERVERS = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cpu"]
ALL = [*SERVERS, DEPLOY / "ray" / "Dockerfile"]
by_name = pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(DEPLOY)))
by_server = pytest.mark.parametrize("file", SERVERS, ids=lambda file: file.name)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instructions and their arguments, with continued lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in joined.splitlines()
        if line.strip()
    ]


def last_stage(file: Path) -> list[tuple[str, str]]:
    found = instructions(file)
    start = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def sources(file: Path) -> list[str]:
    """What is copied from the build context."""
    copied = [args for name, args in instructions(file) if name == "COPY" and "--from=" not in args]
    return [source for args in copied for source in shlex.split(args)[:-1]]


@by_name
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = program("hadolint", SETUP)
    done = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@by_name
def test_the_container_does_not_run_as_root(file: Path) -> None:
    users = [args for name, args in last_stage(file) if name == "USER"]
    # A number: Kubernetes cannot tell whether a name is root's.
    assert users[-1] == "10001:10001"


@by_server
def test_compilers_and_pip_s_cache_stay_in_the_first_stage(file: Path) -> None:
    names = [args for name, args in instructions(file) if name == "FROM"]
    assert [name.rpartition(" AS ")[2] for name in names] == ["build", "runtime"]
    assert not any("pip install" in args for name, args in last_stage(file) if name == "RUN")


@by_server
def test_health_is_readiness(file: Path) -> None:
    (check,) = [args for name, args in last_stage(file) if name == "HEALTHCHECK"]
    options, _, command = check.partition("CMD ")
    assert "/ready" in json.loads(command)[-1]
    compile(json.loads(command)[-1], "HEALTHCHECK", "exec")
    assert int(re.findall(r"--start-period=(\d+)s", options)[0]) >= 300


@by_server
def test_the_command_is_divserve_s(file: Path) -> None:
    stage = dict(last_stage(file))
    assert json.loads(stage["ENTRYPOINT"]) == ["divserve"]
    command = json.loads(stage["CMD"])
    assert command[0] in ("serve", "--help")
    if command[0] == "serve":
        assert command[command.index("--host") + 1] == "0.0.0.0"


def locked(name: str) -> dict[str, str]:
    """Versions by package of a lock file with hashes, every line of which is one of its forms."""
    found: dict[str, str] = {}
    hashes = 1
    for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines():
        if package := re.fullmatch(r"([a-z0-9][a-z0-9.-]*)==(\S+) \\", line):
            assert hashes
            found[package[1]], hashes = package[2], 0
        else:
            hashes += bool(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line))
            assert line.startswith(("    --hash=sha256:", "#")), line
    assert hashes
    return found


def test_the_locked_packages_are_what_divserve_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [
        *project["project"]["dependencies"], *extras["cuda"], *project["build-system"]["requires"]
    ]  # fmt: skip
    cuda, ray = locked("cuda"), locked("ray")
    assert cuda["vllm"] == VLLM_VERSION
    for versions, wanted in ((cuda, asked), (ray, extras["ray"])):
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(versions[requirement.name]), requirement
    # One image is built on the other.
    assert len(cuda.keys() & ray.keys()) > 20
    assert {name for name in cuda.keys() & ray.keys() if cuda[name] != ray[name]} == set()


@by_name
def test_all_that_pip_installs_is_locked(file: Path) -> None:
    commands = [
        command
        for name, args in instructions(file)
        if name == "RUN"
        for command in re.split(r"&&|;", args)
        if "pip install" in command
    ]
    assert commands
    for command in commands:
        assert "--no-deps" in command, command
        if file.name == "Dockerfile.cpu":
            # Its torch comes from another index on every machine, so it has no hash.
            assert re.search(r"cpu\.lock| \.\s*$", command), command
        else:
            assert re.search(r"--require-hashes -r \S+\.lock| \.\s*$", command), command


@by_server
def test_any_user_of_the_group_0_may_write(file: Path) -> None:
    """OpenShift runs images so, and gives the user no name."""
    stage = last_stage(file)
    (made,) = [args for name, args in stage if name == "RUN"]
    assert "chown 10001:0 /var/lib/divserve" in made
    assert "chmod 2775 /var/lib/divserve" in made
    environment = dict(stage)["ENV"]
    assert "HOME=/var/lib/divserve" in environment
    assert "USER=divserve" in environment


def test_ray_s_version_is_one_everywhere() -> None:
    (pinned,) = re.findall(
        r"^ray==(.+)$", (ROOT / "requirements/deploy.lock").read_text(), re.MULTILINE
    )
    assert locked("ray")["ray"] == pinned
    assert f"rayVersion: {pinned}" in (DEPLOY / "ray/rayservice.yaml").read_text()


@by_name
def test_the_context_holds_what_is_copied_and_no_secret(file: Path) -> None:
    """.dockerignore admits named files only: it excludes everything, then lists exceptions."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:].rstrip("/") for rule in rules if rule.startswith("!")]
    for source in sources(file):
        assert any(source == path or source.startswith(f"{path}/") for path in allowed), source
        assert (ROOT / source).exists()
    for secret in (".env", "api-keys", "deploy/api-keys", ".git/config", ".models/x"):
        assert not any(
            fnmatch.fnmatch(secret, path) or secret.startswith(f"{path}/") for path in allowed
        )


@by_name
def test_no_secret_is_built_in(file: Path) -> None:
    words = re.compile(r"(?i)(token|secret|password|api_?key)\s*=")
    assert [args for name, args in instructions(file) if words.search(args)] == []
