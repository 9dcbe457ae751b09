"""A model with recurrent state on either model runner, in a process of its own.

Usage: ``python -m tests.support.child_hybrid MODEL``; prints one JSON line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.child_mixed import prepare


def main(model: Path) -> None:
    """Runs guided and plain requests in two rounds; prints the largest difference, nats."""
    import json
    import random

    from tests.engine.cases import Case, answers_of
    from tests.support.engine import Engine, counted, random_prompt
    from tests.support.forced import Forced, difference, expected
    from tests.support.hf import Answer
    from tests.support.models import TINY_VOCAB

    engine = Engine(model, asynchronous=True, blocks=26, max_model_len=320)
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    preemptions = counted(engine.scheduler, "_preempt_request")
    rng, reference, differences, lengths = random.Random(7), Forced(model), [], set()
    cases = [
        Case(
            random_prompt(rng, length, TINY_VOCAB),
            random_prompt(rng, guide, TINY_VOCAB) if guide else None,
            "cad" if guide else "",
            12,
            Answer(),
        )
        for length, guide in ((55, 56), (57, 1), (58, 0), (59, 54), (65, 70), (129, 0))
    ]
    for _ in range(2):
        for case, answer in zip(cases, answers_of(engine, cases, logprobs=5), strict=True):
            tokens = list(answer.token_ids)
            lengths.add(len(tokens))
            differences.append(difference(answer, expected(reference, case, tokens)))
    result = {
        "runner": [cls.__module__ for cls in type(runner).__mro__],
        "worst": max(differences),
        "lengths": sorted(lengths),
        "preempted": len(preemptions),
        "leftovers": engine.leftovers(),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]))
