"""What lock-step costs: guided requests against plain rows, and plain divserve against stock vLLM.

Two engines run in one process, stock vLLM and divserve; each round runs, in turn,

    stock   2N plain rows on stock vLLM
    plain   2N plain rows on divserve
    guided  N guided requests on divserve (N pairs, the same 2N prompts)

``guided / plain`` compares row tokens per second: a guided request advances two rows per token.
Ratios are taken within a round; the median and the range over rounds are reported.

    python -m bench.lockstep                      # SmolLM2 and two tiny models, about 7 minutes
    python -m bench.lockstep --model smollm2 --pairs 4
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest import record
from tests.support import models
from tests.support.engine import Engine, order, random_prompt

TARGETS = {"guided / plain": 0.95, "plain / stock": 0.99}


@dataclass(frozen=True)
class Setting:
    """A model and the load that suits it."""

    name: str
    path: Path
    vocab: int
    pairs: int
    tokens: int
    rounds: int
    """Many short rounds for tiny models, as the machine's own speed drifts within seconds."""


def settings(
    names: list[str], folder: Path, pairs: int | None, tokens: int, rounds: int
) -> list[Setting]:
    """Makes the requested models; the tiny ones show the time that is not spent in the model."""
    makers: dict[str, tuple[Callable[[], Path], int, int, int]] = {
        "smollm2": (lambda: models.SMOLLM2, 49152, 8, 1),
        "tiny-512": (lambda: models.make_tiny(folder / "a"), 512, 32, 6),
        "tiny-49152": (lambda: models.make_tiny(folder / "b", vocab_size=49152), 49152, 8, 6),
    }
    found = []
    for name in names:
        make, vocab, default_pairs, times = makers[name]
        found.append(Setting(name, make(), vocab, pairs or default_pairs, tokens, times * rounds))
    return found


def batches(setting: Setting, method: str, seed: int) -> tuple[list[Any], list[Any]]:
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
    for _ in range(setting.pairs):
        prompt, guide = (random_prompt(rng, n, setting.vocab) for n in (64, 40))
        plain += [(prompt, SamplingParams(**common)), (guide, SamplingParams(**common))]
        guided.append((prompt, SamplingParams(**common, extra_args=order(method, guide))))
    return plain, guided


def seconds(engine: Engine, batch: list[Any]) -> float:
    """Wall time of a batch."""
    start = time.perf_counter()
    engine.generate(batch)
    return time.perf_counter() - start


def measure(setting: Setting, method: str, progress: Progress) -> dict[str, list[float]]:
    """Ratios of each round, and row tokens per second of each side."""
    rows = 2 * setting.pairs
    options: dict[str, Any] = {
        "max_num_seqs": rows,
        "max_num_batched_tokens": 1024,
        "max_model_len": 512,
        "enable_prefix_caching": False,
    }
    task = progress.add_task(setting.name, total=setting.rounds + 1)
    engines = {
        "stock": Engine(setting.path, lockstep=False, **options),
        "ours": Engine(setting.path, **options),
    }
    figures: dict[str, list[float]] = {}
    for number in range(setting.rounds + 1):
        plain, guided = batches(setting, method, number)
        sides = [("stock", "stock", plain), ("plain", "ours", plain), ("guided", "ours", guided)]
        # Rotate, so that no side is always first after a pause.
        sides = sides[number % 3 :] + sides[: number % 3]
        took = {side: seconds(engines[engine], batch) for side, engine, batch in sides}
        progress.advance(task)
        if number == 0:
            continue  # Warm-up.
        figures.setdefault("guided / plain", []).append(took["plain"] / took["guided"])
        figures.setdefault("plain / stock", []).append(took["stock"] / took["plain"])
        for side, wall in took.items():
            figures.setdefault(f"{side}, row tokens/s", []).append(rows * setting.tokens / wall)
    for engine in engines.values():
        engine.close()
    return figures


def main(
    model: Annotated[list[str], typer.Option(help="smollm2, tiny-512, tiny-49152.")] = [  # noqa: B006
        "smollm2",
        "tiny-512",
        "tiny-49152",
    ],
    pairs: Annotated[int | None, typer.Option(help="Guided requests at once.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 96,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    method: Annotated[str, typer.Option(help="Decoding method.")] = "adacad",
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Measure and print one table."""
    table = Table("case", "metric", "median", "range", "target")
    saved = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=Console(stderr=True)) as progress,
    ):
        for setting in settings(model, Path(folder), pairs, tokens, rounds):
            case = f"{setting.name}, {setting.pairs} pairs, {tokens} tokens, {method}, greedy"
            for metric, values in measure(setting, method, progress).items():
                digits = 3 if "/ " in metric else 0
                value = f"{statistics.median(values):.{digits}f}"
                spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
                target = TARGETS.get(metric)
                table.add_row(case, metric, value, spread, f"≥ {target}" if target else "")
                saved.append({"case": case, "metric": metric, "value": value, "spread": spread})
    Console(width=120).print(table)
    if save:
        command = " ".join(["python -m bench.lockstep", *sys.argv[1:]])
        record.append("lockstep", command, saved)


if __name__ == "__main__":
    typer.run(main)
