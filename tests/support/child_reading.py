"""Scored texts on either model runner, in a process of its own.

Usage: ``python -m tests.support.child_reading MODEL sync|async BLOCKS``; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.child_mixed import prepare


def main(model: Path, mode: str, blocks: int) -> None:
    """Reads texts with a guide and without; prints the largest difference from Hugging Face."""
    from tests.engine.test_reading import made_cases, worst
    from tests.support.engine import Engine
    from tests.support.hf import Reference

    cases = made_cases(Reference(model))
    options: dict[str, Any] = {"blocks": blocks, "max_model_len": 256} if blocks else {}
    engine = Engine(model, asynchronous=mode == "async", **options)
    runner = engine.core.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    requests = [one.request() for one in cases]
    result = {
        "runner": [cls.__module__ for cls in type(runner).__mro__],
        "worst": max(worst(cases, engine.generate(requests)) for _ in range(2)),
        "leftovers": engine.leftovers(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
