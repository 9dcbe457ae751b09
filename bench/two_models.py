"""Two models: what the amateur costs per step, and what switching saves and loses.

Contrast: expert alone, amateur alone, and both in one forward, in turn on the same requests; the
joint step is compared with the sum of the two. Switching (`bench.switching`): a question set at
several thresholds, against the large and the small model alone.

    python -m bench.two_models                         # SmolLM2 and siblings of it, 20 minutes
    python -m bench.two_models --small FOLDER          # switching with another small model
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import plot_switching, switching
from divserve.engine.models.drop import kept_layers
from loadtest import record
from tests.support.engine import Engine, order, random_prompt
from tests.support.hf_models import without_layers
from tests.support.models import SMOLLM2

LAYERS = 30
AMATEURS = (4, 26)
"""Layers left out: one sibling costs nearly as much as the expert, the other a third of it."""
TARGETS = {"(expert + amateur) / contrastive": "≥ 0.9", "seam": "≤ 1.10"}


def sibling(folder: Path, dropped: int) -> Path:
    """Folder of SmolLM2 without ``dropped`` layers, with its tokenizer."""
    from transformers import AutoTokenizer

    kept = set(kept_layers(LAYERS, dropped))
    path = folder / f"drop{dropped}"
    without_layers(SMOLLM2, sorted(set(range(LAYERS)) - kept)).save_pretrained(path)
    AutoTokenizer.from_pretrained(SMOLLM2).save_pretrained(path)
    return path


def seconds(engine: Engine, prompts: list[list[int]], extra: Any, tokens: int) -> float:
    """Wall time of greedy answers to all prompts at once."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra
    )
    start = time.perf_counter()
    engine.generate([(prompt, params) for prompt in prompts])
    return time.perf_counter() - start


def contrast(
    folder: Path, dropped: int, rows: int, tokens: int, rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Ratios of each round, and milliseconds per step, for one amateur."""
    options: dict[str, Any] = {
        "max_num_seqs": rows,
        "max_num_batched_tokens": 1024,
        "max_model_len": 512,
        "enable_prefix_caching": False,
    }
    engines = {
        "expert": Engine(SMOLLM2, **options),
        "amateur": Engine(sibling(folder, dropped), **options),
        "pair": Engine(SMOLLM2, amateurs={"amateur": f"drop:{dropped}"}, **options),
    }
    aided = order("contrastive", None)
    sides: list[tuple[str, str, Any]] = [
        ("expert", "expert", None),
        ("amateur", "amateur", None),
        ("contrastive", "pair", aided),
        ("plain beside an amateur", "pair", None),
    ]
    task = progress.add_task(f"amateur drop:{dropped}, {rows} rows", total=rounds + 1)
    figures: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        rng = random.Random(number)
        prompts = [random_prompt(rng, 64, 49_152) for _ in range(rows)]
        # Rotate, so that no side is always first after a pause.
        turn = number % len(sides)
        took = {
            name: seconds(engines[engine], prompts, extra, tokens)
            for name, engine, extra in sides[turn:] + sides[:turn]
        }
        progress.advance(task)
        if number == 0:
            continue  # Warm-up.
        alone = took["expert"] + took["amateur"]
        ratios = {
            "(expert + amateur) / contrastive": alone / took["contrastive"],
            "plain beside an amateur / expert": took["plain beside an amateur"] / took["expert"],
        }
        for name, value in ratios.items():
            figures.setdefault(name, []).append(value)
        for name, wall in took.items():
            figures.setdefault(f"{name}, ms a step", []).append(1e3 * wall / tokens)
    for engine in engines.values():
        engine.close()
    return figures


def main(
    small: Annotated[Path | None, typer.Option(help="Small model for switching.")] = None,
    name: Annotated[str, typer.Option(help="Its name in the results.")] = "",
    only: Annotated[str, typer.Option(help="contrast or switching; both by default.")] = "",
    rows: Annotated[int, typer.Option(help="Requests at once, for contrast.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 48,
    rounds: Annotated[int, typer.Option(help="Measured rounds, for contrast.")] = 5,
) -> None:
    """Print the tables, append them to bench/results.csv and draw the frontier."""
    command = " ".join(["python -m bench.two_models", *sys.argv[1:]])
    table = Table("case", "metric", "median", "range", "target")
    lines: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as made, Progress(console=Console(stderr=True)) as progress:
        if only != "switching":
            for dropped in AMATEURS:
                case = f"smollm2, amateur drop:{dropped}, {rows} rows, {tokens} tokens"
                found = contrast(Path(made), dropped, rows, tokens, rounds, progress)
                lines += [_line(case, metric, values) for metric, values in found.items()]
        if only != "contrast":
            folder = small or sibling(Path(made), AMATEURS[0])
            label = name or (small.name if small else f"drop:{AMATEURS[0]}")
            lines += switching.measure(SMOLLM2, folder, label, tokens, progress)
    for line in lines:
        target = next((t for key, t in TARGETS.items() if line["metric"].startswith(key)), "")
        table.add_row(line["case"], line["metric"], line["value"], line["spread"], target)
    Console(width=140).print(table)
    record.append("two_models", command, lines)
    if only != "contrast":
        plot_switching.main()


def _line(case: str, metric: str, values: list[float]) -> dict[str, str]:
    digits = 1 if metric.endswith("step") else 3
    value = f"{statistics.median(values):.{digits}f}"
    spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
    return {"case": case, "metric": metric, "value": value, "spread": spread}


if __name__ == "__main__":
    typer.run(main)
