"""The files, flags, values and alerts that docs/deploy.md names exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from typing import Any

import pytest

from tests.support.deploy import CHART, DEPLOY, load
from tests.support.models import ROOT
from tests.test_layout import tracked_files

TEXTS = {".md", ".py", ".toml", ".yaml", ".yml", ".tpl", ".txt", ".service", ".lock", ".json"}

PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    words
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    for part in line.partition("  #")[0].split(" && ")
    if (words := shlex.split(part))
]
PROGRAMS = {
    "API_KEY_FILE=$PWD/api-keys", "HF_TOKEN_FILE=$PWD/hf-token", "MODEL=Qwen/Qwen2.5-7B-Instruct",
    "cd", "docker", "helm", "kubectl", "pip", "promtool", "serve", "sudo",
}  # fmt: skip


def value_at(path: str) -> Any:
    found = load(CHART / "values.yaml")
    for key in path.split("."):
        found = found[key]
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_names_what_there_is(words: list[str]) -> None:
    assert words[0] in PROGRAMS
    for word in words:
        if word.startswith("deploy/"):
            assert (ROOT / word).exists()
    if words[0] == "promtool":
        assert (DEPLOY / "prometheus" / words[-1]).exists()
    for option in [word for flag, word in pairwise(words) if flag == "--set"]:
        value_at(option.partition("=")[0])


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(deploy/[\w./-]+)`", PAGE))))
def test_a_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_values_are_the_chart_s() -> None:
    roots = "|".join(load(CHART / "values.yaml"))
    named = re.findall(rf"`((?:{roots})\.[\w.]+)(?:=\w+)?`", PAGE)
    assert len(named) > 5
    for path in named:
        value_at(path)


def test_all_alerts_are_told() -> None:
    rules = load(DEPLOY / "prometheus/rules/divserve.yml")["groups"][0]["rules"]
    assert set(re.findall(r"`(Divserve\w+)`", PAGE)) == {rule["alert"] for rule in rules}


BY_NAME = re.compile(r"pip3? install( +-\S+)* +['\"]?divserve\b(?!/)|['\"]divserve\[")


@pytest.mark.parametrize(
    "command", ["pip install divserve", "bin/pip install -U 'divserve[cuda]'", "or 'divserve[cpu]'"]
)
def test_an_installation_by_name_is_found(command: str) -> None:
    assert BY_NAME.search(command)


def test_nobody_is_told_to_install_divserve_by_its_name() -> None:
    """It is not on the index, so anyone could take its name there."""
    told = [
        str(file.relative_to(ROOT))
        for file in tracked_files()
        if file.suffix in TEXTS or file.name.startswith("Dockerfile")
        if file.name != "test_docs.py" and BY_NAME.search(file.read_text(encoding="utf-8"))
    ]
    assert told == []


def test_every_part_of_deploy_is_told() -> None:
    for part in DEPLOY.iterdir():
        if part.name != "__pycache__":
            assert f"deploy/{part.name}" in PAGE, part.name
