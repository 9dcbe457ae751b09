"""Two models: what the amateur costs per step, and what switching saves and loses.

Contrast: expert alone, amateur alone, and both in one forward, in turn on the same requests; the
joint step is compared with the sum of the two. Switching (`bench.switching`): a question set at
several thresholds, against the large and the small model alone.

    python -m bench.two_models                         # SmolLM2 and siblings of it, 20 minutes
    python -m bench.two_models --small FOLDER          # switching with another small model
    python -m bench.two_models --only contrast --size 1.5b --mode graphs      # on a GPU
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import sizes, switching
from bench.rounds import Figures, keep, rotated, summary
from bench.sizes import DtypeOption, Mode, Model, ModeOption, SizeOption
from divserve.engine.models.drop import kept_layers
from loadtest import record
from tests.support.engine import Engine, order, random_prompt
from tests.support.hf_models import without_layers

LAYERS = 30
AMATEURS = (4, 26)
"""Layers left out: one sibling costs nearly as much as the expert, the other a third of it."""
TARGETS = {
    "(expert + amateur) / contrastive": "≥ 0.9",
    "contrastive / (expert + amateur)": "≤ 1.05 on an H100",
    "seam": "≤ 1.10",
}


def amateurs_of(expert: Model) -> tuple[int, ...]:
    """Numbers of layers that are left out."""
    return AMATEURS if expert.size is None else (expert.size.shape.layers // 2,)


def sibling(expert: Model, folder: Path, dropped: int) -> Path:
    """Folder of the expert without ``dropped`` layers, with its tokenizer if it has one."""
    path = folder / f"drop{dropped}"
    if expert.size is not None:
        return expert.size.shape.write(path, dropped)
    from transformers import AutoTokenizer

    kept = set(kept_layers(LAYERS, dropped))
    without_layers(expert.path, sorted(set(range(LAYERS)) - kept)).save_pretrained(path)
    AutoTokenizer.from_pretrained(expert.path).save_pretrained(path)
    return path


def seconds(engine: Engine, prompts: list[list[int]], extra: Any, tokens: int) -> float:
    """Wall time of greedy answers to all prompts at once."""
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, extra_args=extra
    )
    return sizes.seconds(engine, [(prompt, params) for prompt in prompts])


def contrast(
    expert: Model,
    folder: Path,
    dropped: int,
    rows: int,
    tokens: int,
    rounds: int,
    progress: Progress,
) -> Figures:
    """Ratios of each round, and milliseconds per step, for one amateur."""
    options: dict[str, Any] = {
        "max_num_seqs": rows,
        "max_num_batched_tokens": 1024,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        **expert.options,
    }
    engines = {
        "expert": Engine(expert.path, **options),
        "amateur": Engine(sibling(expert, folder, dropped), **options),
        "pair": Engine(expert.path, amateurs={"amateur": f"drop:{dropped}"}, **options),
    }
    aided = order("contrastive", None)
    sides: list[tuple[str, str, Any]] = [
        ("expert", "expert", None),
        ("amateur", "amateur", None),
        ("contrastive", "pair", aided),
        ("plain beside an amateur", "pair", None),
    ]
    task = progress.add_task(f"amateur drop:{dropped}, {rows} rows", total=rounds + 1)
    figures: Figures = {}
    for number in range(rounds + 1):
        rng = random.Random(number)
        prompts = [random_prompt(rng, 64, expert.vocab) for _ in range(rows)]
        took = {
            name: seconds(engines[engine], prompts, extra, tokens)
            for name, engine, extra in rotated(sides, number)
        }
        progress.advance(task)
        alone = took["expert"] + took["amateur"]
        ratios = {
            "(expert + amateur) / contrastive": alone / took["contrastive"],
            "contrastive / (expert + amateur)": took["contrastive"] / alone,
            "plain beside an amateur / expert": took["plain beside an amateur"] / took["expert"],
        }
        steps = {f"{name}, ms a step": 1e3 * wall / tokens for name, wall in took.items()}
        keep(figures, ratios | steps, number)
    for engine in engines.values():
        engine.close()
    return figures


def main(
    small: Annotated[Path | None, typer.Option(help="Small model for switching.")] = None,
    name: Annotated[str, typer.Option(help="Its name in the results.")] = "",
    only: Annotated[str, typer.Option(help="contrast or switching; both by default.")] = "",
    size: SizeOption = None,
    dtype: DtypeOption = "bfloat16",
    mode: ModeOption = Mode.EAGER,
    rows: Annotated[int, typer.Option(help="Requests at once, for contrast.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 48,
    rounds: Annotated[int, typer.Option(help="Measured rounds, for contrast.")] = 5,
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Print the tables, append them to bench/results.csv and draw the frontier."""
    command = record.asked("bench.two_models")
    table = Table("case", "metric", "median", "range", "target")
    lines: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as made, Progress(console=Console(stderr=True)) as progress:
        if only != "switching":
            expert = Model.chosen(size, dtype, mode, Path(made))
            for dropped in amateurs_of(expert):
                case = f"{expert.name}, amateur drop:{dropped}, {rows} rows, {tokens} tokens"
                found = contrast(expert, Path(made), dropped, rows, tokens, rounds, progress)
                lines += [_line(case, metric, values) for metric, values in found.items()]
        if only != "contrast":
            smollm2 = Model.chosen(None, dtype, mode, Path(made))
            folder = small or sibling(smollm2, Path(made), AMATEURS[0])
            label = name or (small.name if small else f"drop:{AMATEURS[0]}")
            lines += switching.measure(smollm2.path, folder, label, tokens, progress)
    for line in lines:
        target = next((t for key, t in TARGETS.items() if line["metric"].startswith(key)), "")
        table.add_row(line["case"], line["metric"], line["value"], line["spread"], target)
    Console(width=140).print(table)
    if save:
        record.append("two_models", command, lines)
        if only != "contrast":
            # matplotlib is not on every machine that measures.
            from bench import plot_switching

            plot_switching.main()


def _line(case: str, metric: str, values: list[float]) -> dict[str, str]:
    value, spread = summary(values, 1 if metric.endswith("step") else 3)
    return {"case": case, "metric": metric, "value": value, "spread": spread}


if __name__ == "__main__":
    typer.run(main)
