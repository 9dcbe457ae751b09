"""What each method costs: its row tokens per second ÷ those of plain requests at equal rows.

A request with one guide holds two rows of the batch, with two guides three, and with a method that
has no second stream one; every side fills the same number of rows, and each row advances by one
token per step. A round runs all methods and the plain requests in turn on one engine; ratios are
taken within a round, and the median and the range over rounds are reported. The prefill of a
grounding text is counted (here a third of a prompt).

    python -m bench.menu                      # SmolLM2, about 5 minutes
    python -m bench.menu --model tiny-512
    python -m bench.menu --size 1.5b --mode graphs      # on a GPU
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

from bench.lockstep import Setting, settings, sized
from bench.rounds import Figures, keep, rotated, summary
from bench.sizes import DtypeOption, Mode, Model, ModeOption, SizeOption, seconds
from divserve.decoding import METHODS
from loadtest import record
from tests.support.engine import Engine, random_prompt, stacked

ROWS = 12
"""Divisible by one, two and three rows per request."""
PLAIN = "plain"
ALONE = [name for name, method in METHODS.items() if not method.amateurs + method.engines]
"""Methods of one model; `bench.two_models` has the others."""
STACKS: dict[str, tuple[str, ...]] = {
    "adacad+kl_temperature, one guide": ("adacad", "kl_temperature"),
    "adacad+kl_temperature, two guides": ("adacad", "kl_temperature"),
}


def rows_of(name: str) -> int:
    """Rows that a request holds while it decodes."""
    if name.endswith("two guides"):
        return 3
    return 2 if name in STACKS or METHODS[name].guided else 1


def batch(name: str, setting: Setting, seed: int) -> list[Any]:
    """Requests of one kind that fill `ROWS` rows, sampled at temperature 1."""
    from vllm import SamplingParams

    rng = random.Random(seed)
    found = []
    for _ in range(ROWS if name == PLAIN else ROWS // rows_of(name)):
        prompt, guide, other = (random_prompt(rng, 60, setting.vocab) for _ in range(3))
        order = None if name == PLAIN else _order(name, guide, other)
        params = SamplingParams(
            temperature=1.0,
            seed=seed,
            max_tokens=setting.tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=order,
        )
        found.append((prompt, params))
    return found


def _order(name: str, guide: list[int], other: list[int]) -> dict[str, Any]:
    methods = STACKS.get(name, (name,))
    bodies = [{"method": m, **({"grounding": "x"} if m == "vdgd" else {})} for m in methods]
    guides = [guide if METHODS[m].guided else None for m in methods]
    if name.endswith("two guides"):
        guides[-1] = other
    return stacked(bodies, guides, 1.0, guide[:20] if "vdgd" in methods else None)


def measure(setting: Setting, progress: Progress) -> Figures:
    """Ratios of each round by method."""
    names = [PLAIN, *ALONE, *STACKS]
    options: dict[str, Any] = {
        "max_num_seqs": 2 * ROWS,
        "max_num_batched_tokens": 1024,
        "max_model_len": 512,
        "enable_prefix_caching": False,
        **setting.options,
    }
    engine = Engine(setting.path, **options)
    task = progress.add_task(setting.name, total=(setting.rounds + 1) * len(names))
    figures: Figures = {}
    for number in range(setting.rounds + 1):
        took = {}
        for name in rotated(names, number):
            took[name] = seconds(engine, batch(name, setting, number))
            progress.advance(task)
        keep(figures, {name: took[PLAIN] / took[name] for name in names[1:]}, number)
    engine.close()
    return figures


def main(
    model: Annotated[list[str], typer.Option(help="smollm2, tiny-512, tiny-49152.")] = ["smollm2"],  # noqa: B006
    size: SizeOption = None,
    dtype: DtypeOption = "bfloat16",
    mode: ModeOption = Mode.EAGER,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 48,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 5,
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Print the table and append it to bench/results.csv."""
    console = Console()
    with tempfile.TemporaryDirectory() as made, Progress(transient=True) as progress:
        if size is None:
            chosen = settings(model, Path(made), (), tokens, rounds)
        else:
            chosen = [sized(Model.chosen(size, dtype, mode, Path(made)), (), tokens, rounds)]
        for setting in chosen:
            case = f"{setting.name}, {ROWS} rows, {tokens} tokens, sampled"
            figures = measure(setting, progress)
            table = Table("method", "rows per request", "÷ plain", "range", title=case)
            lines = []
            for name, ratios in figures.items():
                median, spread = summary(ratios, 3)
                table.add_row(name, str(rows_of(name)), median, spread)
                lines.append(
                    {"case": case, "metric": f"{name} / plain", "value": median, "spread": spread}
                )
            console.print(table)
            if save:
                record.append("menu", record.asked("bench.menu"), lines)


if __name__ == "__main__":
    typer.run(main)
