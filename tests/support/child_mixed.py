"""A mixed batch on either model runner, in a process of its own.

On an NVIDIA GPU it runs as the server does; without one, Model Runner V2 goes through Triton's
interpreter. ``VLLM_USE_V2_MODEL_RUNNER`` chooses the runner, `tests.support.platform.OPTIONS`
whatever else an engine can be asked for.

Usage: ``python -m tests.support.child_mixed MODEL sync|async BLOCKS``; prints one JSON line.
"""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.platform import ON_GPU


def prepare() -> None:
    """Call before Triton is imported.

    vLLM uses Triton only where a driver exists; the interpreter does not require one.
    """
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")
    # For whoever runs the module without pytest; see `tests.conftest`.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    if ON_GPU:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends

    class NoDriver:
        @staticmethod
        def is_active() -> bool:
            return False

    triton.backends.backends["cpu"] = types.SimpleNamespace(driver=NoDriver, compiler=None)
    _take_any_mask()


def _take_any_mask() -> None:
    """The interpreter makes ``&`` of a tensor and a number an integer, and loads no such mask."""
    from triton.runtime.interpreter import InterpreterBuilder

    load = InterpreterBuilder.create_masked_load

    def of_bool(self: Any, ptrs: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, ptrs, mask, *args)

    InterpreterBuilder.create_masked_load = of_bool


def main(model: Path, mode: str, blocks: int) -> None:
    """Runs the mixed batch of the V1 tests, with logprobs, seeds and aborts; prints what failed."""
    import json

    from vllm import SamplingParams

    from divserve.engine.worker import runner_v1, runner_v2
    from tests.engine import test_groups
    from tests.engine.cases import mismatches, mixed_cases, run
    from tests.support.drafter import Drafter, inform
    from tests.support.engine import Engine, order
    from tests.support.hf import Reference
    from tests.support.tops import ASKED, ONE_GUIDE, Reported, asking, wrong_of
    from tests.support.verified import Verified

    test_groups.TOKENS = 6
    groups = test_groups.make_cases(Reference(model), rounds=1)
    cases = mixed_cases(Reference(model), guided=8, plain=3, longest=80, seed=2)
    for case in cases:
        case.max_tokens = min(case.max_tokens, 10)
        for values in (case.expected.tokens, case.expected.margins):
            del values[10:]
    options: dict[str, Any] = (
        {"blocks": blocks, "max_model_len": 256} if blocks else {"max_model_len": 640}
    )
    engine = Engine(model, asynchronous=mode == "async", **options)
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    verified = Verified(engine)
    if getattr(runner, "speculator", None) is not None:
        Drafter.answers = [(case.prompt, case.expected.tokens) for case in cases]
        Drafter.answers += [(group.prompt, group.expected.tokens) for group in groups]
        inform(runner)
    result: dict[str, object] = {
        "runner": [cls.__module__ for cls in type(runner).__mro__],
        "mismatches": [
            *mismatches(cases, run(engine, cases)),
            *test_groups.mismatches(groups, test_groups.run(engine, groups)),
        ],
        "leftovers": engine.leftovers(),
    }
    seeded = SamplingParams(
        temperature=0.9,
        seed=3,
        n=2,
        max_tokens=6,
        ignore_eos=True,
        detokenize=False,
        logprobs=2,
        extra_args=order("adacad", cases[0].prompt[-2:] or [9], 0.9),
    )
    prompt = list(range(20, 60))
    if ON_GPU:
        # vLLM's kernel of top-k and top-p does not work in Triton's interpreter.
        seeded.top_p = 0.9

    def sampled() -> list[list[int]]:
        (output,) = engine.generate([(prompt, seeded.clone())])
        return [list(choice.token_ids) for choice in output.outputs]

    result["seeded"] = [sampled(), sampled()]
    with (
        mock.patch.object(runner_v1, "worth_it_v1", return_value=False),
        mock.patch.object(runner_v2, "worth_it_v2", return_value=False),
    ):
        result["all rows sampled"] = sampled()
    for step in range(4):
        engine.core.add_request("gone", {"prompt_token_ids": prompt}, seeded.clone())
        for _ in range(step):
            engine.core.step()
        engine.core.abort_request(["gone"])
    result["after aborts"] = engine.leftovers()
    reported = Reported(engine)
    asked = [group for group in groups if group.name in ONE_GUIDE[:2]]
    outputs = engine.generate(
        [(case.prompt, test_groups.greedy(asking(case.order or {}, ASKED))) for case in asked]
    )
    tops = reported.take(outputs)
    result["wrong tops"] = wrong_of(Reference(model), asked, outputs, tops)
    result["drafts"] = verified.counts()
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
