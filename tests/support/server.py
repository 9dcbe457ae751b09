"""A real `divserve serve` in its own process, as a user starts it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any
from urllib.parse import urlsplit

from tests.support.engine import ENVIRONMENT
from tests.support.models import ROOT
from tests.support.platform import server_flags

API_KEY = "test-key"
START_TIMEOUT_S = 600
STOP_TIMEOUT_S = 60
TOGETHER = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
"""The engine's worker runs inside the engine's process, which saves one start of Python."""
PORTS: list[IO[str]] = []
"""Locks of the ports that this process has been given; they end with it."""
GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
FLAGS = ("--served-model-name", "smol", "--api-key", API_KEY, "--max-model-len", "1024")


@dataclass(frozen=True)
class Started:
    """A server, its process and what it has written."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def serving(
    model: Path,
    log: Path,
    flags: Sequence[str] = (),
    module: str = "divserve",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Starts a server and waits until it is healthy; yields its address and process.

    Args:
        model: its folder.
        log: file for its output.
        flags: of ``divserve serve``, in addition to `FLAGS`.
        module: the module that is run.
        environment: variables in addition to a user's shell.

    Raises:
        RuntimeError: it did not start; the message ends with its log.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", module, "serve", str(model), "--port", str(port)]
    variables = {**clean_environment(), "VLLM_CPU_KVCACHE_SPACE": "1", **environment}
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *FLAGS, *server_flags(), *flags],
            cwd=ROOT,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(url, process, log)
        yield url, process
    finally:
        _stop(process)


def get(url: str, path: str) -> str:
    """A route's answer to a request with the key."""
    request = urllib.request.Request(f"{url}{path}", headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=60) as response:
        text: str = response.read().decode()
    return text


def gauges(url: str) -> dict[str, float]:
    """The server's own gauges of its load, each the sum over its engines."""
    lines = get(url, "/metrics").splitlines()
    return {
        name: sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))
        for name in GAUGES
    }


def free_port() -> int:
    """A port of this machine that is not in use yet, and that no other process of tests gets.

    Until a server listens there, others could be given it too: vLLM's would share it, each with
    some of the connections.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        taken = (Path(tempfile.gettempdir()) / f"divserve-port-{port}").open("w")
        try:
            fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken.close()
        else:
            PORTS.append(taken)
            return port


def hang_up(url: str, body: dict[str, Any], after_s: float) -> None:
    """Requests a completion and leaves after some seconds, whatever has arrived by then."""
    data = json.dumps(body).encode()
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
            + f"Authorization: Bearer {API_KEY}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        time.sleep(after_s)


def clean_environment() -> dict[str, str]:
    """A user's environment: without what the in-process engines of other tests have set."""
    ours = {*ENVIRONMENT, "OMP_NUM_THREADS", "TRITON_F32_DEFAULT"}
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    return environment | {"VLLM_LOGGING_LEVEL": "WARNING"}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server, by force if necessary, so that none outlives the tests."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
