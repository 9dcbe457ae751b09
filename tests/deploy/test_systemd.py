"""The systemd unit: its sandboxing, and systemd's own verdict where systemd is installed."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from divserve.startup import leaving
from tests.support.deploy import DEPLOY, program

UNIT = DEPLOY / "systemd" / "divserve.service"
CUDA = DEPLOY / "systemd" / "cuda.conf"
SYSTEMD = "systemd"


def settings(*files: Path) -> dict[str, list[str]]:
    """All values of each setting, in order; sections are ignored, as setting names are unique."""
    found = defaultdict(list)
    for file in files:
        for line in file.read_text().splitlines():
            if line and line[0] not in "#;[":
                name, equals, value = line.partition("=")
                assert equals, line
                found[name].append(value)
    return found


def test_requests_in_progress_may_finish() -> None:
    unit = settings(UNIT)
    words = shlex.split(unit["ExecStart"][0])
    drain = int(words[words.index("--drain-timeout") + 1])
    assert int(unit["TimeoutStopSec"][0]) > drain + 5
    # The engine's processes are not told to stop before the server has drained.
    assert unit["KillMode"] == ["mixed"]


def test_keys_are_a_credential() -> None:
    unit = settings(UNIT)
    name, path = unit["LoadCredential"][0].split(":")
    assert f"--api-key-file ${{CREDENTIALS_DIRECTORY}}/{name}" in unit["ExecStart"][0]
    assert path.startswith("/etc/divserve/")


def test_a_token_of_the_hub_may_be_missing() -> None:
    assert settings(UNIT)["EnvironmentFile"][1:] == ["-/etc/divserve/hub.env"]


def test_a_start_that_is_stopped_has_not_failed() -> None:
    """The exit code of `divserve.startup.leaving` after a SIGTERM."""
    assert settings(UNIT)["SuccessExitStatus"] == [str(leaving.SIGNALLED + signal.SIGTERM)]


def test_the_environment_sets_what_the_command_uses() -> None:
    lines = (DEPLOY / "systemd/divserve.env").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    assert names == {"MODEL", "FLAGS"}
    (command,) = settings(UNIT)["ExecStart"]
    assert "${MODEL}" in command
    # Without braces: systemd splits it into flags.
    assert command.endswith(" $FLAGS")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("SystemCallFilter", "@system-service"),
    ],
)
def test_the_service_is_confined(name: str, value: str) -> None:
    assert settings(UNIT)[name] == [value]


def test_cuda_opens_nvidia_s_devices_only() -> None:
    unit = settings(UNIT, CUDA)
    assert unit["PrivateDevices"] == ["yes", "no"]
    assert unit["DevicePolicy"] == ["closed"]
    assert all(device.startswith("char-nvidia") for device in unit["DeviceAllow"])


@pytest.mark.parametrize("drop_ins", [[], [CUDA]], ids=["cpu", "cuda"])
def test_systemd_understands_the_unit(drop_ins: list[Path], tmp_path: Path) -> None:
    analyze = program("systemd-analyze", SYSTEMD)
    # systemd-analyze looks for the program too.
    text = UNIT.read_text().replace("/opt/divserve/bin/divserve", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    folder = tmp_path / f"{UNIT.name}.d"
    folder.mkdir()
    for file in drop_ins:
        shutil.copy(file, folder)
    done = subprocess.run(
        [analyze, "verify", "--man=no", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_little_exposure(tmp_path: Path) -> None:
    """systemd calls 2.0 of 10 and below OK; most services are above 9."""
    analyze = program("systemd-analyze", SYSTEMD)
    (tmp_path / UNIT.name).write_text(UNIT.read_text())
    done = subprocess.run(
        [analyze, "security", "--offline=yes", "--threshold=20", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
