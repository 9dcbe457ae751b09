"""What a second data-parallel rank brings on a CPU, where the ranks share the cores.

Three servers' engines take turns in each round, with the same guided requests: two ranks with half
of the cores each, one engine with all cores, and one engine with the cores of one rank. Ideal is
that two ranks do twice as much as the engine with a rank's cores; against the engine with all cores
the ratio says whether ranks or threads use the cores better.

    python -m bench.data_parallel                 # SmolLM2, about 10 minutes
    python -m bench.data_parallel --model tiny --requests 32 --tokens 64
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.rounds import Figures, keep, rotated, summary
from loadtest import record
from tests.support.data_parallel import Ranks, data_parallel, spec
from tests.support.engine import random_prompt
from tests.support.models import SMOLLM2, TINY_VOCAB, make_tiny

BINDING = "VLLM_CPU_OMP_THREADS_BIND"
PROMPT, GUIDE = 64, 32
"""Tokens of each request's prompts."""


def sides() -> dict[str, tuple[int, str]]:
    """Number of ranks and their cores, by the name of a side."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    lists = [",".join(map(str, part)) for part in (cores[:half], cores[half:], cores)]
    return {
        "2 ranks": (2, "|".join(lists[:2])),
        "1 engine, all cores": (1, lists[2]),
        "1 engine, a rank's cores": (1, lists[0]),
    }


def start(path: Path, ranks: int, binding: str, stack: ExitStack) -> Ranks:
    """Starts the engines of a side, whose processes read the binding from the environment."""
    os.environ[BINDING] = binding
    options: dict[str, Any] = {
        "data_parallel_size": ranks, "distributed_executor_backend": "mp",
        "disable_log_stats": True, "enable_prefix_caching": False, "max_num_batched_tokens": 1024,
        "max_num_seqs": 64,
    }  # fmt: skip
    return stack.enter_context(data_parallel(path, **options))


def seconds(side: Ranks, requests: int, tokens: int, seed: int) -> float:
    """Wall time of guided answers, all requested at once."""
    rng = random.Random(seed)
    asked = [
        (
            random_prompt(rng, PROMPT, TINY_VOCAB),
            spec("adacad", random_prompt(rng, GUIDE, TINY_VOCAB)),
        )
        for _ in range(requests)
    ]
    begun = time.perf_counter()
    answers = side.ask_all(asked, max_tokens=tokens, detokenize=False)
    took = time.perf_counter() - begun
    assert all(len(answer.tokens) == tokens for answer in answers)
    return took


def main(
    model: Annotated[str, typer.Option(help="smollm2 or tiny.")] = "smollm2",
    requests: Annotated[int, typer.Option(help="Guided requests at once.")] = 16,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 32,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 5,
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Print the table and append it to bench/results.csv."""
    before = os.getloadavg()[0]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack, Progress() as progress:
        path = SMOLLM2 if model == "smollm2" else make_tiny(Path(made))
        names = list(sides())
        engines = {name: start(path, *side, stack) for name, side in sides().items()}
        task = progress.add_task(model, total=(rounds + 1) * len(names))
        for number in range(rounds + 1):
            took = {}
            for name in rotated(names, number):
                took[name] = seconds(engines[name], requests, tokens, number)
                progress.advance(task)
            two, whole, half = (took[name] for name in names)
            ratios = {
                "2 ranks / (2 x a rank's cores)": half / two / 2,
                "2 ranks / all cores": whole / two,
            }
            keep(figures, ratios, number)
    # The engines themselves make up to three processes that compute, and some that wait.
    load = f"load {before:.1f} to {os.getloadavg()[0]:.1f}"
    case = f"{model}, {requests} pairs, {tokens} tokens, {load}"
    table = Table("tokens per second", "ratio", "range", title=case)
    lines = []
    for name, values in figures.items():
        median, spread = summary(values, 3)
        table.add_row(name, median, spread)
        lines.append({"case": case, "metric": name, "value": median, "spread": spread})
    Console().print(table)
    if save:
        record.append("data_parallel", record.asked("bench.data_parallel"), lines)


if __name__ == "__main__":
    typer.run(main)
