"""Amateurs and continuations on either model runner, as `tests.support.child_mixed`.

Usage: ``python -m tests.support.child_two_models SERVED AMATEUR TUNED``; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.child_mixed import prepare


def main(served: Path, amateur: Path, tuned: Path) -> None:
    """Runs a mixed batch of all methods with amateurs, then answers that are cut and continued."""
    import torch
    from transformers import AutoModelForCausalLM

    from tests.engine import test_amateurs, test_continuation
    from tests.engine.cases import mismatches
    from tests.support.engine import Engine, stacked
    from tests.support.hf import Reference
    from tests.support.hf_models import Trio

    test_amateurs.TOKENS = 6
    load = AutoModelForCausalLM.from_pretrained
    trio = Trio(Reference(served), *(load(p, dtype=torch.float32) for p in (amateur, tuned)))
    engine = Engine(
        served, amateurs={"amateur": str(amateur), "tuned": str(tuned)}, max_model_len=640
    )
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    prompts = [list(range(20 + i, 30 + 9 * i)) for i in range(len(test_amateurs.BODIES))]
    cases = [
        (test_amateurs.aided(prompt, body, trio), stacked([body], [None]) if body else None)
        for prompt, body in zip(prompts, test_amateurs.BODIES, strict=True)
    ]
    answers = [list(o.outputs[0].token_ids) for o in test_amateurs.run(engine, cases)]
    result: dict[str, Any] = {
        "runner": [cls.__module__ for cls in type(runner).__mro__],
        "mismatches": mismatches([case for case, _ in cases], answers),
        "continued": continued(engine, test_continuation),
        "leftovers": engine.leftovers(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


def continued(engine: Any, module: Any) -> list[Any]:
    """Pairs of the rest of an answer and its continuation, which should be equal."""
    prompt = list(range(40, 75))
    found = []
    for fields in ({}, {"frequency_penalty": 1.5}, {"repetition_penalty": 1.7}):
        order = module.order
        whole = module.tokens_of(engine, prompt, module.params(order([]), max_tokens=8, **fields))
        params = module.params(order(whole[:3]), max_tokens=8, **fields)
        found.append([whole[3:], module.tokens_of(engine, prompt, params)])
    leaves = module.order([], module.Switch(0.0, 2, 4, "small"))
    cut = module.tokens_of(engine, prompt, module.params(leaves, max_tokens=8))
    plain = module.tokens_of(engine, prompt, module.params(module.order([]), max_tokens=8))
    return [*found, [plain[:4], cut]]


if __name__ == "__main__":
    prepare()
    main(*map(Path, sys.argv[1:4]))
