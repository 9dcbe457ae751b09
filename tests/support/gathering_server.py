"""`divserve serve` for a mixture of experts with data parallelism on a CPU."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from divserve.engine.worker import worker
    from divserve.server import build_app
    from divserve.startup import launch, leaving
    from tests.support.gathering import GatheringWorker, install

    leaving.on_signals()
    # Start-up looks at them, too.
    install()
    worker.GuidedCPUWorker = GatheringWorker  # type: ignore[misc]
    sys.exit(launch.serve(sys.argv[2:], build_app))
