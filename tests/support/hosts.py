"""Two hosts on one machine: network namespaces, each with its own /dev/shm.

    this process ── 10.213.78.0/30 ── head ── 10.213.77.0/30 ── node

Only the head can be reached from here, and the node only from the head. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from tests.support.models import ROOT
from tests.support.server import FLAGS, START_TIMEOUT_S, clean_environment

__all__ = ["HEAD", "Hosts", "hosts"]

HEAD, NODE = "10.213.77.1", "10.213.77.2"
OUTSIDE, SEEN = "10.213.78.2", "10.213.78.1"
HTTP = 8000
URL = f"http://{SEEN}:{HTTP}"
OWN_MEMORY = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'


@dataclass
class Hosts:
    """The namespaces, and what runs in them."""

    head: str
    node: str
    logs: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    url: str = URL

    def start(
        self, model: Path, head: Sequence[str], node: Sequence[str]
    ) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """Starts a server on both and waits until it serves; its processes.

        Args:
            model: its folder.
            head: flags of the head.
            node: flags of the other host, which is started first.
        """
        waiting = self._start(self.node, NODE, model, ["--headless", *node])
        serving = self._start(
            self.head, HEAD, model, ["--host", "0.0.0.0", "--port", str(HTTP), *head]
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and serving.poll() is None and waiting.poll() is None:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{URL}/ready", timeout=5).status_code == 200:
                    return serving, waiting
            time.sleep(0.5)
        tails = [path.read_text(errors="replace")[-3000:] for path in self.logs.iterdir()]
        raise RuntimeError("\n\n".join(["the server did not start:", *tails]))

    def _start(
        self, name: str, address: str, model: Path, flags: Sequence[str]
    ) -> subprocess.Popen[bytes]:
        variables = {
            **clean_environment(),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            # Both would be guessed from routes and names that these hosts do not have.
            "VLLM_HOST_IP": address,
            "GLOO_SOCKET_IFNAME": f"{name}i",
        }
        command = [sys.executable, "-m", "divserve", "serve", str(model), *FLAGS, *flags]
        with (self.logs / f"{len(self.started)}-{name}.txt").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", OWN_MEMORY, "sh",
                 *command],
                cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    @staticmethod
    def lose(process: subprocess.Popen[bytes]) -> None:
        """Kills all that a process has started, as if its host had gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def hosts(logs: Path) -> Iterator[Hosts]:
    """Makes two hosts; skips the test where that is not allowed.

    Args:
        logs: folder for the output of their servers.
    """
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("no network namespaces here: ip and unshare are not installed")
    head, node = (f"ds{os.getpid()}{end}" for end in "hn")
    here = f"ds{os.getpid()}o"
    try:
        command = ["ip", "netns", "add", head]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        for line in (
            f"netns add {node}",
            f"link add {head}i netns {head} type veth peer name {node}i netns {node}",
            f"link add {here} type veth peer name {head}o netns {head}",
            f"addr add {OUTSIDE}/30 dev {here}",
            f"link set {here} up",
            f"-n {head} addr add {HEAD}/30 dev {head}i",
            f"-n {head} addr add {SEEN}/30 dev {head}o",
            f"-n {node} addr add {NODE}/30 dev {node}i",
            *(
                f"-n {name} link set {device} up"
                for name, device in (
                    (head, "lo"), (node, "lo"), (head, f"{head}i"), (head, f"{head}o"),
                    (node, f"{node}i"),
                )
            ),
        ):  # fmt: skip
            subprocess.run(["ip", *line.split()], check=True)
        made_hosts = Hosts(head, node, logs)
        try:
            yield made_hosts
        finally:
            for process in made_hosts.started:
                Hosts.lose(process)
                process.wait()
    finally:
        # The devices go with them.
        for name in (head, node):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
