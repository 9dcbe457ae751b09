"""`make setup-browser` where Chromium cannot be installed: it says so, and CI goes on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.models import ROOT

NEEDED = ("bash", "cksum", "cut", "env", "id")
"""What the Makefile runs on the way, but for sudo and apt-get."""
USER = "echo 1000"
FAILS = 'echo "$0 $*" >&2; exit 100'
ROOT_S_SUDO = 'echo "sudo $1" >&2; test "$1" = -n && shift; exec "$@"'


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        ({}, "apt-get"),
        ({"apt-get": FAILS}, "update"),
        ({"apt-get": 'test "$*" != "${*/install/}" && exit 100; exit 0'}, ""),
        ({"id": USER}, "sudo"),
        ({"id": USER, "sudo": FAILS}, "sudo -n"),
        ({"id": USER, "sudo": ROOT_S_SUDO, "apt-get": FAILS}, "apt-get"),
    ],
    ids=["no apt", "no network", "no package", "no sudo", "no right to sudo", "sudo, no network"],
)
def test_what_cannot_be_installed_is_said(
    tmp_path: Path, commands: dict[str, str], said: str
) -> None:
    make = shutil.which("make")
    assert make is not None
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    for name, script in commands.items():
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [make, "-C", str(ROOT), "setup-browser"], env={"PATH": str(tmp_path)}, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "installing Chromium" in done.stdout
    assert said in done.stderr
    assert done.stderr.endswith("It cannot be installed here, and what needs it is skipped.\n")


def test_a_chromium_that_is_there_is_enough(tmp_path: Path) -> None:
    for name in (*NEEDED, "make"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "chromium").write_text("#!/bin/bash\n")
    (tmp_path / "chromium").chmod(0o755)
    command = ["make", "-C", str(ROOT), "--no-print-directory", "setup-browser"]
    done = subprocess.run(
        command, env={"PATH": str(tmp_path)}, text=True, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == ""
