"""Look-back decoding on either model runner, as `tests.support.child_mixed`.

Usage: ``python -m tests.support.child_look_back MODEL sync|async BLOCKS``; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.child_mixed import prepare


def main(model: Path, mode: str, blocks: int) -> None:
    """Every rule beside plain requests, twice; then aborts in the middle of alarms."""
    from tests.engine import test_look_back as on_v1
    from tests.engine.cases import Case, mismatches
    from tests.support.engine import Engine, counted
    from tests.support.hf import Reference
    from tests.support.look_back import problems, recorded

    on_v1.TOKENS = tokens = 8
    reference = Reference(model)
    options: dict[str, Any] = (
        {"blocks": blocks, "max_model_len": 256} if blocks else {"max_model_len": 640}
    )
    engine = Engine(model, look_back=True, asynchronous=mode == "async", **options)
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    rows, preempted = recorded(engine), counted(engine.scheduler, "_preempt_request")
    # Where blocks are scarce, all requests need another one soon after they have been admitted.
    lengths = (31, 30, 31, 31, 30, 63, 62) if blocks else (1, 2, 31, 32, 33, 64, 90)
    prompts = [list(range(20 + i, 20 + i + n)) for i, n in enumerate(lengths)]
    plain = [Case(p, None, "", tokens, reference.greedy(p, None, "", tokens)) for p in prompts[2:4]]
    wrong: list[str] = []
    alarms = 0
    for _ in range(2):
        rows.clear()
        requests = [
            (p, on_v1.params(rule, i))
            for i, (p, rule) in enumerate(zip(prompts, on_v1.RULES, strict=True))
        ]
        outputs = engine.generate([*requests, *((c.prompt, on_v1.plainly(c)) for c in plain)])
        answers = [list(o.outputs[0].token_ids) for o in outputs]
        wrong += mismatches(plain, answers[len(prompts) :])
        for output, prompt, answer, rule in zip(
            outputs, prompts, answers, on_v1.RULES, strict=False
        ):
            seen = rows[output.request_id]
            wrong += problems(reference.model, prompt, answer, seen, rule)
            alarms += sum(row.state != 0 for row in seen)
    result: dict[str, object] = {
        "runner": [cls.__module__ for cls in type(runner).__mro__],
        "wrong": wrong,
        "alarms": alarms,
        "preempted": len(preempted),
        "leftovers": engine.leftovers(),
    }
    for step in range(5):
        for i, prompt in enumerate(prompts):
            given = on_v1.params({"threshold": 3.0, "k": 4}, i)
            engine.core.add_request(f"r{i}", {"prompt_token_ids": prompt}, given)
        for _ in range(step):
            engine.core.step()
        engine.core.abort_request([f"r{i}" for i in range(len(prompts))])
    result["after aborts"] = engine.leftovers()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
