"""The share of an engine step that is spent in divserve's code rather than in vLLM's.

Our overrides of vLLM's methods, and the vLLM methods that they call, are wrapped to read a clock on
entry and exit: time is charged to whoever's code is innermost. The kernels count as ours. Only
whole decoding steps (schedule, forward, sample, update) are measured. A GPU's time is not visible
to that clock: there the kernels' time is the device's, and launching them is the host's and ours
too, although the two overlap: an upper bound.

    python -m bench.step_overhead                 # SmolLM2, 1 pair and 8 pairs, about a minute
    python -m bench.step_overhead --size 1.5b --mode graphs      # on a GPU
"""

from __future__ import annotations

import functools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.lockstep import watched
from bench.sizes import ON_GPU, DtypeOption, Mode, Model, ModeOption, SizeOption, synchronize
from loadtest import record
from tests.support.engine import Engine, order, random_prompt

TARGET = 0.05


class Clock:
    """Time by the owner of the innermost code."""

    def __init__(self) -> None:
        self.spent = {"ours": 0.0, "theirs": 0.0, "kernels": 0.0}
        self._owners = ["theirs"]
        self._since = time.perf_counter()

    def _charge(self) -> None:
        now = time.perf_counter()
        self.spent[self._owners[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., Any], owner: str) -> Callable[..., Any]:
        """The function, wrapped so that its own time is charged to ``owner``."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._owners.append(owner)
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._owners.pop()

        return timed

    def read(self) -> dict[str, float]:
        """Time spent since the last reading."""
        self._charge()
        found, self.spent = self.spent, dict.fromkeys(self.spent, 0.0)
        return found


def instrument(clock: Clock, cls: type) -> None:
    """Wraps every method of ``cls`` that divserve defines or overrides, and what it overrides."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("divserve")]
    names = {
        name
        for base in ours
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and not name.startswith("__")
    }
    for base in cls.__mro__:
        owner = "ours" if base in ours else "theirs"
        for name in names & vars(base).keys():
            setattr(base, name, clock.wrap(vars(base)[name], owner))


def install(clock: Clock, engine: Engine) -> None:
    """Puts the clock into the scheduler, the runner, its stages and the kernels."""
    from divserve.engine.worker import (
        amateurs,
        contrast,
        guidance,
        report,
        runner_v1,
        runner_v2,
        temperature,
    )
    from divserve_kernels import guide

    core = engine.core.engine_core.engine_core
    instrument(clock, type(core.scheduler))
    instrument(clock, type(core.model_executor.driver_worker.worker.model_runner))
    instrument(clock, guidance.GuidanceStages)
    instrument(clock, report.PendingGuidance)
    # These modules imported the names: they are replaced where they are called.
    for module in (contrast, amateurs, temperature):
        replace(module, "guide", clock.wrap(guide, "kernels"))
    for module in (runner_v1, runner_v2):
        replace(module, "attach", clock.wrap(report.attach, "ours"))


def replace(module: Any, name: str, function: Callable[..., Any]) -> None:
    """Replaces a function where it is imported; `AttributeError` if it is not."""
    getattr(module, name)
    setattr(module, name, function)


def shares(
    engine: Engine, clock: Clock, vocab: int, pairs: int, steps: int
) -> list[dict[str, float]]:
    """Each owner's share of every decoding step of ``pairs`` guided requests.

    Raises:
        RuntimeError: the kernels were not timed: their function is called from somewhere else.
    """
    from vllm import SamplingParams

    rng = random.Random(0)
    for number in range(pairs):
        prompt, guide = (random_prompt(rng, length, vocab) for length in (64, 40))
        params = SamplingParams(
            temperature=0,
            max_tokens=steps + 20,
            ignore_eos=True,
            detokenize=False,
            extra_args=order("adacad", guide),
        )
        engine.core.add_request(f"{pairs}-{number}", {"prompt_token_ids": prompt}, params)
    found = []
    with watched(every=1) as operation:
        for step in range(steps + 10):
            operation.clear()
            clock.read()
            engine.core.engine_core.get_output()
            synchronize()
            spent = clock.read()
            if step < 10:  # Prefill and warm-up.
                continue
            if not spent["kernels"]:
                raise RuntimeError("the kernels' clock has not run")
            total = sum(spent.values())
            if ON_GPU:
                # What the host has spent on launching them is its own time.
                spent["ours"] += spent["kernels"]
                (spent["kernels"],) = operation
            found.append({owner: value / total for owner, value in spent.items()})
    engine.core.abort_request([f"{pairs}-{number}" for number in range(pairs)])
    engine.leftovers()
    return found


def main(
    pairs: Annotated[list[int], typer.Option(help="Guided requests at once.")] = [1, 8],  # noqa: B006
    size: SizeOption = None,
    dtype: DtypeOption = "bfloat16",
    mode: ModeOption = Mode.EAGER,
    steps: Annotated[int, typer.Option(help="Measured steps.")] = 200,
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Measure and print one table."""
    with tempfile.TemporaryDirectory() as made:
        model = Model.chosen(size, dtype, mode, Path(made))
        options: dict[str, Any] = {"max_num_seqs": 2 * max(pairs), "max_num_batched_tokens": 1024}
        # One step at a time, or the host's work would hide behind the device's.
        options |= {**model.options, "asynchronous": False}
        engine = Engine(model.path, max_model_len=512, **options)
    clock = Clock()
    install(clock, engine)
    table = Table("case", "kernels", "rest of ours", "together", f"target ≤ {TARGET:.0%}")
    saved = []
    for count in track(pairs, console=Console(stderr=True)):
        found = shares(engine, clock, model.vocab, count, steps)
        kernels, ours = (
            statistics.median(step[owner] for step in found) for owner in ("kernels", "ours")
        )
        both = [step["ours"] + step["kernels"] for step in found]
        low, middle, high = np.quantile(both, (0.1, 0.5, 0.9))
        verdict = "met" if middle <= TARGET else "missed"
        case = f"{model.name}, {count} pairs = {2 * count} rows, adacad"
        table.add_row(case, f"{kernels:.2%}", f"{ours:.2%}", f"{middle:.2%}", verdict)
        spread = f"{low:.4f} to {high:.4f} (10 to 90 %)"
        saved += [
            {"case": case, "metric": "share of a step", "value": f"{middle:.4f}", "spread": spread},
            {"case": case, "metric": "kernels' share", "value": f"{kernels:.4f}", "spread": ""},
        ]
    engine.close()
    Console().print(table)
    if save:
        record.append("step_overhead", record.asked("bench.step_overhead"), saved)


if __name__ == "__main__":
    typer.run(main)
