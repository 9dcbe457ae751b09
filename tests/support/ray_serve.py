"""The application of deploy/ray on a Ray of its own, in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.models import ROOT
from tests.support.server import clean_environment, free_port

__all__ = ["serving_in_ray"]

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


@contextmanager
def serving_in_ray(options: dict[str, Any], log: Path) -> Iterator[str]:
    """Starts Ray and its replicas; yields the address of Ray Serve's proxy.

    Args:
        options: of the application.
        log: file for what Ray writes.
    """
    port = free_port()
    given = {"drain_timeout_s": 5, "environment": ENVIRONMENT, **options}
    # Ray's workers find the application, which is not installed, through PYTHONPATH.
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.ray_server", str(port), json.dumps(given)],
            cwd=ROOT,
            env=clean_environment() | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not any(line.strip() == "ready" for line in process.stdout):
            raise RuntimeError(f"Ray did not start:\n{log.read_text()[-4000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
