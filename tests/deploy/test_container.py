"""The image's server in a sandbox: user 10001, a read-only root, one volume, no compiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.test_images import last_stage
from tests.support.container import STATE, UID, image_environment, running, sandbox
from tests.support.deploy import CHART, DEPLOY, load
from tests.support.models import ROOT
from tests.support.platform import cpu_only
from tests.support.server import START_TIMEOUT_S, STOP_TIMEOUT_S, free_port

IMAGE = dict(last_stage(DEPLOY / "Dockerfile.cpu"))
COMMAND: list[str] = load(DEPLOY / "compose.yaml")["services"]["divserve"]["command"]
MODEL = COMMAND[1]

# The image's own, and what the tests need: a Python that finds the code in this folder, and a small
# cache that fits beside the machine's other servers.
ENVIRONMENT = image_environment(IMAGE["ENV"]) | {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}

pytestmark = [pytest.mark.long, cpu_only("the image is that for CPUs")]


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    pid: int
    state: Path
    log: Path


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server(
    smollm2: Path, state: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The server of compose.yaml, on its own port, once the image's health check succeeds."""
    log, port = tmp_path_factory.mktemp("container") / "log.txt", free_port()
    # The last of two flags wins; only this machine needs to reach the server.
    command = [sys.executable, "-m", "divserve", *COMMAND, "--host=127.0.0.1", f"--port={port}"]
    start = sandbox(state, smollm2, MODEL, ENVIRONMENT)
    with running([*start, *command], log) as (process, pid):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(1)
        yield Server(port, process, pid, state, log)


def healthy(port: int) -> bool:
    """Whether the image's HEALTHCHECK succeeds."""
    code = json.loads(IMAGE["HEALTHCHECK"].partition("CMD ")[2])[-1].replace("8000", str(port))
    with suppress(OSError):
        exec(code)
        return True
    return False


def in_sandbox(state: Path, model: Path, code: str) -> str:
    """The output of a program that runs where the server does."""
    done = subprocess.run(
        [*sandbox(state, model, MODEL, ENVIRONMENT), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sandbox_is_what_the_image_promises(smollm2: Path, state: Path) -> None:
    assert IMAGE["USER"] == f"{UID}:{UID}"
    assert IMAGE["WORKDIR"] == IMAGE["VOLUME"] == str(STATE)
    code = (
        "import os, shutil, tempfile\n"
        "print(os.getuid(), os.getpid(), os.getcwd(), shutil.which('gcc'), os.environ['HOME'])\n"
        f"for folder in ('/', '/etc', '/opt', '/var', {str(ROOT)!r}, {MODEL!r}, '/tmp', '.'):\n"
        "    try: tempfile.TemporaryFile(dir=folder)\n"
        "    except OSError as error: print(error.errno)\n"
        "    else: print('written')"
    )
    told, *writes = in_sandbox(state, smollm2, code).splitlines()
    assert told.split() == [str(UID), "1", str(STATE), "None", str(STATE)]
    assert writes == ["30"] * 6 + ["written"] * 2


def test_a_guided_request(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, CHART / "files/guided_request.py"],
        env={**os.environ, "URL": f"http://127.0.0.1:{server.port}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "all guided" in done.stdout


def test_nothing_was_refused(server: Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30) as answer:
        assert b"divserve_guided_steps_total" in answer.read()
    for word in ("Read-only file system", "Permission denied", "Traceback"):
        assert word not in server.log.read_text()


def test_sigterm_ends_it_with_0(server: Server) -> None:
    """Runs last in the module. As process 1, the server would ignore a signal without a handler."""
    os.kill(server.pid, signal.SIGTERM)
    assert server.process.wait(STOP_TIMEOUT_S) == 0
