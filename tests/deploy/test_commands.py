"""`divserve serve` accepts every command line in deploy/."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from tests.deploy.test_images import SERVERS, last_stage
from tests.deploy.test_systemd import UNIT, settings
from tests.support.deploy import DEPLOY, VALUES, container, load, manifests, of_kind
from tests.support.models import ROOT
from tests.support.server import clean_environment

PARSE = """
import json, sys
from divserve.startup import launch
for name, argv in json.loads(sys.argv[1]).items():
    try:
        launch.parse(argv)
    except BaseException as error:
        print(f"{name}: {error!r}")
"""


def commands() -> dict[str, list[str]]:
    """What follows ``divserve``, by its file."""
    found = {}
    (plain,) = of_kind(manifests(), "Deployment")["spec"]["template"]["spec"]["containers"]
    found["kubernetes"] = plain["args"]
    found |= {
        file: load(DEPLOY / file)["services"]["divserve"]["command"]
        for file in ("compose.yaml", "compose.cuda.yaml")
    }
    keys = load(DEPLOY / "compose.keys.yaml")["services"]["divserve"]["entrypoint"][2]
    found["compose.keys.yaml"] = ["serve", "m", *shlex.split(keys.partition('"$$@"')[2])]
    for file in SERVERS:
        command = json.loads(dict(last_stage(file))["CMD"])
        if command[0] == "serve":
            found[file.name] = command
    environment = settings(DEPLOY / "systemd/divserve.env")
    line = settings(UNIT)["ExecStart"][0].removeprefix("/opt/divserve/bin/divserve ")
    line = line.replace("${MODEL}", environment["MODEL"][0]).replace(
        "$FLAGS", environment["FLAGS"][0]
    )
    found["systemd"] = shlex.split(line)
    (application,) = load(DEPLOY / "ray/config.yaml")["applications"]
    found["ray"] = ["serve", *application["args"]["argv"]]
    return found


def test_divserve_takes_the_flags(tmp_path: Path) -> None:
    given = commands()
    assert len(given) == 7
    check(given, tmp_path)


def test_divserve_takes_the_chart_s_flags(tmp_path: Path) -> None:
    check({name: container(name)["args"] for name in VALUES}, tmp_path)


def check(given: dict[str, list[str]], folder: Path) -> None:
    """Parses all of them with the real parser; their key files are on other machines."""
    keys = folder / "api-keys"
    keys.write_text("tests:sk-1\n")
    assert all(argv[0] == "serve" for argv in given.values())
    flags = {name: with_keys(argv[1:], keys) for name, argv in given.items()}
    done = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps(flags)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", done.stderr


def with_keys(argv: list[str], file: Path) -> list[str]:
    """The command with another key file."""
    found, flag = [], "--api-key-file"
    for before, word in pairwise(["", *argv]):
        mine = f"{flag}={file}" if word.startswith(f"{flag}=") else word
        found.append(str(file) if before == flag else mine)
    return found
