"""What lock-step costs: guided requests against plain rows, and plain divserve against stock vLLM.

Two engines run in one process, stock vLLM and divserve; each round runs, in turn,

    stock   2N plain rows on stock vLLM
    plain   2N plain rows on divserve
    guided  N guided requests on divserve (N pairs, the same 2N prompts)

``guided / plain`` compares row tokens per second: a guided request advances two rows per token.
Ratios are taken within a round; the median and the range over rounds are reported.

    python -m bench.lockstep                      # SmolLM2 and two tiny models, about 7 minutes
    python -m bench.lockstep --model smollm2 --pairs 4
    python -m bench.lockstep --size 1.5b --mode graphs --pairs 8 --pairs 64      # on a GPU
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.rounds import Figures, keep, rotated, summary
from bench.sizes import (
    ON_GPU,
    DtypeOption,
    Mode,
    Model,
    ModeOption,
    SizeOption,
    engine_options,
    seconds,
)  # fmt: skip
from loadtest import record
from tests.support import models
from tests.support.engine import Engine, order, random_prompt

TARGETS = {"guided / plain": 0.97 if ON_GPU else 0.95, "plain / stock": 0.99}


@dataclass(frozen=True)
class Setting:
    """A model and the load that suits it."""

    name: str
    path: Path
    vocab: int
    pairs: Sequence[int]
    tokens: int
    rounds: int
    """Many short rounds for tiny models, as the machine's own speed drifts within seconds."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of its engines."""


def settings(
    names: Sequence[str], folder: Path, pairs: Sequence[int], tokens: int, rounds: int
) -> list[Setting]:
    """Makes the requested models; the tiny ones show the time that is not spent in the model."""
    options = engine_options(None, "float32", Mode.EAGER, ON_GPU)
    known = {
        "smollm2": Setting("smollm2", models.SMOLLM2, 49_152, [8], tokens, rounds),
        "tiny-512": Setting("tiny-512", folder / "a", 512, [32], tokens, 6 * rounds),
        "tiny-49152": Setting("tiny-49152", folder / "b", 49_152, [8], tokens, 6 * rounds),
    }
    found = []
    for name in names:
        setting = known[name]
        if setting.path != models.SMOLLM2:
            models.make_tiny(setting.path, vocab_size=setting.vocab)
        found.append(replace(setting, pairs=pairs or setting.pairs, options=options))
    return found


def sized(model: Model, pairs: Sequence[int], tokens: int, rounds: int) -> Setting:
    """A model of the shape of a real one."""
    return Setting(model.name, model.path, model.vocab, pairs or [8], tokens, rounds, model.options)


def batches(setting: Setting, pairs: int, method: str, seed: int) -> tuple[list[Any], list[Any]]:
    """(2N plain requests, N guided ones) over the same fresh prompts."""
    from vllm import SamplingParams

    rng = random.Random(seed)
    common: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": setting.tokens,
        "ignore_eos": True,
        "detokenize": False,
    }
    plain, guided = [], []
    for _ in range(pairs):
        prompt, guide = (random_prompt(rng, n, setting.vocab) for n in (64, 40))
        plain += [(prompt, SamplingParams(**common)), (guide, SamplingParams(**common))]
        guided.append((prompt, SamplingParams(**common, extra_args=order(method, guide))))
    return plain, guided


@contextmanager
def watched(every: int | None = None) -> Iterator[list[float]]:
    """Seconds of the guidance operation in steps from now on, by the clock of its device.

    Args:
        every: one in this many steps is timed on a GPU; by default as in service.
    """
    from divserve.engine.worker import report

    found: list[float] = []
    collect = report.PendingGuidance.collect

    def noting(self: report.PendingGuidance) -> Any:
        guidance = collect(self)
        if guidance.seconds is not None:
            found.append(guidance.seconds)
        return guidance

    with (
        mock.patch.object(report.PendingGuidance, "collect", noting),
        mock.patch.object(report, "TIMED_EVERY", every or report.TIMED_EVERY),
    ):
        yield found


def measure(setting: Setting, method: str, progress: Progress) -> Iterator[tuple[int, Figures]]:
    """For each number of pairs, the ratios of each round and the speed of each side."""
    options: dict[str, Any] = {
        "max_num_seqs": 2 * max(setting.pairs),
        "max_num_batched_tokens": 8192 if ON_GPU else 1024,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        **setting.options,
    }
    task = progress.add_task(setting.name, total=len(setting.pairs) * (setting.rounds + 1))
    engines = {
        "stock": Engine(setting.path, lockstep=False, **options),
        "ours": Engine(setting.path, **options),
    }
    for pairs in setting.pairs:
        figures: Figures = {}
        for number in range(setting.rounds + 1):
            plain, guided = batches(setting, pairs, method, number)
            runs = [("stock", "stock", plain), ("plain", "ours", plain), ("guided", "ours", guided)]
            with watched() as operation:
                took = {
                    side: seconds(engines[engine], batch)
                    for side, engine, batch in rotated(runs, number)
                }
            progress.advance(task)
            found = figures_of(took, 2 * pairs, setting.tokens)
            found["guidance operation, µs"] = 1e6 * statistics.median(operation)
            keep(figures, found, number)
        yield pairs, figures
    for engine in engines.values():
        engine.close()


def figures_of(took: dict[str, float], rows: int, tokens: int) -> dict[str, float]:
    """The figures of a round, from the seconds of each side."""
    return {
        "guided / plain": took["plain"] / took["guided"],
        "plain / stock": took["stock"] / took["plain"],
        **{f"{side}, row tokens/s": rows * tokens / wall for side, wall in took.items()},
        **{f"{side}, ms a step": 1e3 * wall / tokens for side, wall in took.items()},
    }


def main(
    model: Annotated[list[str], typer.Option(help="smollm2, tiny-512, tiny-49152.")] = [  # noqa: B006
        "smollm2",
        "tiny-512",
        "tiny-49152",
    ],
    size: SizeOption = None,
    dtype: DtypeOption = "bfloat16",
    mode: ModeOption = Mode.EAGER,
    pairs: Annotated[list[int], typer.Option(help="Guided requests at once.")] = [],  # noqa: B006
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 96,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    method: Annotated[str, typer.Option(help="Decoding method.")] = "adacad",
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Measure and print one table."""
    table = Table("case", "metric", "median", "range", "target")
    saved = []
    with (
        tempfile.TemporaryDirectory() as made,
        Progress(console=Console(stderr=True)) as progress,
    ):
        load = pairs, tokens, rounds
        if size is None:
            chosen = settings(model, Path(made), *load)
        else:
            chosen = [sized(Model.chosen(size, dtype, mode, Path(made)), *load)]
        for setting in chosen:
            for count, figures in measure(setting, method, progress):
                case = f"{setting.name}, {count} pairs, {tokens} tokens, {method}, greedy"
                for metric, values in figures.items():
                    value, spread = summary(values, 0 if metric.endswith(("s/s", "µs")) else 3)
                    target = TARGETS.get(metric)
                    table.add_row(case, metric, value, spread, f"≥ {target}" if target else "")
                    saved.append({"case": case, "metric": metric, "value": value, "spread": spread})
    Console(width=120).print(table)
    if save:
        command = record.asked("bench.lockstep")
        record.append("lockstep", command, saved)


if __name__ == "__main__":
    typer.run(main)
