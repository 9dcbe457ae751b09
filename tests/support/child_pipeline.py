"""A pipeline of two stages under Model Runner V2, as `tests.support.child_mixed`.

Usage: ``python -m tests.support.child_pipeline MODEL sync|async BLOCKS``; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.child_mixed import prepare


def runner(worker: Any) -> list[str]:
    """Modules of the classes of a worker's runner."""
    return [cls.__module__ for cls in type(worker.model_runner).__mro__]


def main(model: Path, mode: str, blocks: int) -> None:
    """Runs a mixed batch twice, then aborts all requests after each number of steps."""
    from vllm import SamplingParams

    from tests.engine.cases import mismatches, mixed_cases, order_of, run
    from tests.support.engine import Engine, counted
    from tests.support.hf import Reference

    cases = mixed_cases(Reference(model), guided=8, plain=3, longest=80, seed=2)
    for case in cases:
        case.max_tokens = min(case.max_tokens, 10)
        for values in (case.expected.tokens, case.expected.margins):
            del values[10:]
    options: dict[str, Any] = (
        {"blocks": blocks, "max_model_len": 256} if blocks else {"max_model_len": 640}
    )
    engine = Engine(model, pipeline_parallel_size=2, asynchronous=mode == "async", **options)
    preempted = counted(engine.scheduler, "_preempt_request")
    wrong = [line for _ in range(2) for line in mismatches(cases, run(engine, cases))]
    result: dict[str, object] = {
        "runner": engine.llm.collective_rpc(runner)[-1],
        "mismatches": wrong,
        "preempted": len(preempted),
        "leftovers": engine.leftovers(),
    }
    for steps in range(6):
        for i, case in enumerate(cases[:6]):
            params = SamplingParams(
                temperature=0,
                max_tokens=10,
                ignore_eos=True,
                detokenize=False,
                extra_args=order_of(case),
            )
            engine.core.add_request(f"r{i}", {"prompt_token_ids": case.prompt}, params)
        for _ in range(steps):
            engine.core.step()
        engine.core.abort_request([f"r{i}" for i in range(6)])
    result["after aborts"] = engine.leftovers()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ in ("__main__", "__mp_main__"):
    # Also in the processes of the workers, which import this module under the second name.
    prepare()
if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
