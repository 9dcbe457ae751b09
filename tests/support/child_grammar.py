"""Grammars beside drafts on model runner V2, as `tests.support.child_mixed`.

Usage: ``python -m tests.support.child_grammar MODEL sync|async``; prints one JSON line.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.child_mixed import prepare

METHODS = ("plain", "cad", "contrast that drops")
WAYS = ("JSON schema", "regular expression, cut", "grammar and penalties", "stop string")


def main(model: Path, mode: str) -> None:
    """Runs a batch on an engine without drafts, then on one with them."""
    from divserve.engine.scheduler.governor import OPTION
    from tests.engine.test_drafted_text import OPTIONS, batch_of
    from tests.support.drafter import LOOKUP_ON_DEVICE, Drafter, inform
    from tests.support.engine import Engine
    from tests.support.verified import Verified

    def answers(engine: Engine) -> list[list[int]]:
        asked = [(prompt, params.clone()) for prompt, params in batch.values()]
        return [list(output.outputs[0].token_ids) for output in engine.generate(asked)]

    options: dict[str, Any] = {"asynchronous": mode == "async", **OPTIONS}
    engine = Engine(model, **options)
    batch = batch_of(engine, METHODS, WAYS)
    expected = answers(engine)
    engine.close()
    engine = Engine(
        model,
        speculative_config=LOOKUP_ON_DEVICE,
        additional_config={OPTION: False},
        **options,
    )
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    verified = Verified(engine)
    prompts = [prompt for prompt, _ in batch.values()]
    Drafter.answers = list(zip(prompts, expected, strict=True))
    inform(runner)
    found = zip(batch, answers(engine), expected, strict=True)
    result = {
        "runner": [cls.__module__ for cls in type(runner).__mro__],
        "differing": [[name, one, other] for name, one, other in found if one != other],
        "tokens": sum(map(len, expected)),
        "drafts": verified.counts(),
        "leftovers": engine.leftovers(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]), sys.argv[2])
