"""Starts Ray and the application of deploy/ray on this machine, until standard input ends.

A separate process: Ray starts others, and issues warnings that pytest would treat as errors.
Usage: python -m tests.deploy.ray_server PORT OPTIONS, the latter as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray import serve

from deploy.ray.serve_app import build


def main(port: int, options: dict[str, object]) -> None:
    """Prints "ready" once all replicas are."""
    # A Unix socket's path is limited to 107 characters, and Ray makes its own longer.
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=80 * 1024 * 1024,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(options))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
