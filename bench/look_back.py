"""What look-back decoding costs: in steps without and with an alarm, in memory, per comparison.

Figures are ratios and differences of sides that ran in turn in one round. In ``itl`` the sides are
plain greedy rows on an engine without the store of hidden states (*bare*), the same rows on an
engine with it (*plain*), and rows that look back and find nothing near. The product with the head,
which the target allows for (GEMM), is timed inside the plain steps, with the caches as they are
there; a GPU's time is not visible to the host's clock, and its target has no such allowance.

    python -m bench.look_back                         # all parts, about 15 minutes on two cores
    python -m bench.look_back --only itl --rounds 9   # itl, alarm, memory or distributions
    python -m bench.look_back --only itl --size 1.5b --mode graphs      # on a GPU
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.kept_states import distributions
from bench.rounds import Figures, keep, rotated
from bench.sizes import ON_GPU, DtypeOption, Mode, Model, ModeOption, SizeOption
from divserve.decoding import Stack
from divserve.decoding.look_back import LookBack
from divserve.engine.order import Order
from loadtest import record
from tests.support.engine import Engine, counted, order, random_prompt

OPTIONS: dict[str, Any] = {
    "max_model_len": 2304,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 1024,
}
LENGTHS = {32: 161, 128: 161, 1024: 1121, 0: 2017}
"""Tokens of a prompt by window (0: all of them). One more than whole blocks: from the second round
on, the rest comes from the prefix cache."""
BATCHES = (1, 8)
CANDIDATES = (5, 8, 10)
WARM = 4
"""Tokens that every request has before its steps count: prefill and old positions are done."""
TARGETS = {"look_back / bare": 1.05} if ON_GPU else {"(look_back − bare − GEMM) / bare, %": 2.0}


Request = tuple[list[int], dict[str, Any] | None]
Run = tuple[list[float], float, float]
"""Seconds of each step, and seconds per token of the first and of the last request."""


def decode(engine: Engine, requests: Sequence[Request], tokens: int) -> Run:
    """Runs steps until the first of the requests, all decoding, has `tokens` more tokens."""
    from vllm import SamplingParams

    have = dict.fromkeys(map(str, range(len(requests))), 0)
    for name, (prompt, extra) in zip(have, requests, strict=True):
        params = SamplingParams(
            temperature=0, max_tokens=2000, ignore_eos=True, detokenize=False, extra_args=extra
        )
        engine.core.add_request(name, {"prompt_token_ids": prompt}, params)
    before, steps = dict(have), list[float]()
    while have["0"] < before["0"] + tokens or min(before.values()) < WARM:
        if min(before.values()) < WARM:
            before, steps = dict(have), []
        start = time.perf_counter()
        outputs = engine.core.step()
        steps.append(time.perf_counter() - start)
        have.update({one.request_id: len(one.outputs[0].token_ids) for one in outputs})
    engine.core.abort_request(list(have))
    assert not any(engine.leftovers().values())
    own, other = (sum(steps) / (have[n] - before[n]) for n in ("0", max(have)))
    return steps, own, other


def timed(owner: Any, name: str) -> list[float]:
    """Milliseconds of each call to a method of ``owner``."""
    took, method = list[float](), getattr(owner, name)

    def timing(*args: Any) -> Any:
        start = time.perf_counter()
        found = method(*args)
        took.append(1e3 * (time.perf_counter() - start))
        return found

    setattr(owner, name, timing)
    return took


def without_alarm(window: int) -> dict[str, Any]:
    """``extra_args`` of a request that looks back and never finds a step near enough.

    No client may ask for such a threshold: random weights repeat distributions exactly.
    """
    method = LookBack(method="look_back", window=window).model_copy(update={"threshold": -1.0})
    return Order(Stack([method]).spec(0.0, [None], ())).pack()


def opened(model: Model) -> tuple[Engine, Any, list[list[int]]]:
    """An engine with the store, its model runner, and prompts."""
    engine = Engine(model.path, look_back=True, **OPTIONS | model.options)
    rng, longest = random.Random(0), max(LENGTHS.values())
    worker = engine.core.engine_core.engine_core.model_executor.driver_worker.worker
    prompts = [random_prompt(rng, longest, model.vocab) for _ in range(max(BATCHES))]
    return engine, worker.model_runner, prompts


def itl(
    model: Model, rounds: int, tokens: int, progress: Progress
) -> Iterator[tuple[str, Figures]]:
    """Steps without an alarm."""
    engine, runner, prompts = opened(model)
    bare = Engine(model.path, **OPTIONS | model.options)
    alarms = counted(engine.scheduler.alarms, "wait")
    gemm = [] if ON_GPU else timed(runner.model, "compute_logits")
    for (window, length), rows in product(LENGTHS.items(), BATCHES):
        case = f"{rows} rows, window {window or 'all'}, prompts of {length} tokens"
        looking = without_alarm(window)
        sides = {"bare": (bare, None), "plain": (engine, None), "look_back": (engine, looking)}
        figures: Figures = {}
        for number in progress.track(range(rounds + 1), description=case):
            ms = {}
            for name in rotated(list(sides), number):
                one, extra = sides[name]
                steps, *_ = decode(one, [(p[:length], extra) for p in prompts[:rows]], tokens)
                ms[name] = 1e3 * statistics.median(steps)
                if name == "plain" and gemm:
                    ms["GEMM"] = statistics.median(gemm[-tokens:])
            over = ms["look_back"] - ms["bare"]
            found = {
                "bare step, ms": ms["bare"],
                "plain / bare (the store alone)": ms["plain"] / ms["bare"],
                "look_back / plain": ms["look_back"] / ms["plain"],
                "look_back / bare": ms["look_back"] / ms["bare"],
                "look_back − bare, ms": over,
                "alarms": len(alarms),
            }
            if gemm:
                rest = 100 * (over - ms["GEMM"]) / ms["bare"]
                found |= {"GEMM, ms": ms["GEMM"], "(look_back − bare − GEMM) / bare, %": rest}
            alarms.clear()
            keep(figures, found, number)
        yield case, figures
    bare.close()
    engine.close()


def alarm(
    model: Model, rounds: int, tokens: int, progress: Progress
) -> Iterator[tuple[str, Figures]]:
    """Steps that are all alarms, alone and beside seven plain rows."""
    engine, _, prompts = opened(model)
    sides: dict[str, Any] = {"plain": None}
    sides |= {f"k={k}": order("look_back", None, threshold=1000, k=k) for k in CANDIDATES}
    figures: dict[str, Figures] = {}
    for number, rows in product(progress.track(range(rounds + 1), description="alarms"), BATCHES):
        beside: list[Request] = [(p[: LENGTHS[128]], None) for p in prompts[1:rows]]
        runs = {
            name: decode(engine, [(prompts[0][: LENGTHS[128]], sides[name]), *beside], tokens)
            for name in rotated(list(sides), number)
        }
        plain, usual, _ = runs.pop("plain")
        for name, (steps, own, other) in runs.items():
            found = {
                "time a token / plain": own / usual,
                "steps a token": len(steps) / tokens,
                "more time an alarm, ms": 1e3 * (own - usual),
            }
            if rows > 1:
                slow = statistics.quantiles(steps, n=20)[-1]
                found["ITL of the plain rows / plain"] = other / usual
                found["its 95th percentile / plain median"] = slow / statistics.median(plain)
            keep(figures.setdefault(f"{name}, {rows - 1} rows beside", {}), found, number)
    engine.close()
    yield from figures.items()


def memory(model: Model, *_: Any) -> Iterator[tuple[str, Figures]]:
    """Bytes per token, as vLLM lays them out."""
    from divserve.engine.models.hidden_store import LAYER

    engine, runner, _prompts = opened(model)
    specs, config = runner.get_kv_cache_spec(), runner.kv_cache_config
    size = {name: spec.page_size_bytes / spec.block_size for name, spec in specs.items()}
    kept, keys = size.pop(LAYER) + 4, sum(size.values())
    slots = config.num_blocks * specs[LAYER].block_size
    found = {
        "hidden state and lse, bytes a token": kept,
        "keys and values, bytes a token": keys,
        "store / keys and values": kept / keys,
        # One allocation, named for each kind of layer.
        "allocated, bytes a token": max(t.size for t in config.kv_cache_tensors) / slots,
        "float16 log-probs / store": 2 * model.vocab / kept,
    }
    yield str(specs[LAYER].dtype), {name: [value] for name, value in found.items()}
    engine.close()


PARTS = {"itl": itl, "alarm": alarm, "memory": memory, "distributions": distributions}


def main(
    only: Annotated[str, typer.Option(help="One part: " + ", ".join(PARTS) + ".")] = "",
    size: SizeOption = None,
    dtype: DtypeOption = "bfloat16",
    mode: ModeOption = Mode.EAGER,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    tokens: Annotated[int, typer.Option(help="Tokens per side and round.")] = 24,
    recorded: Annotated[bool, typer.Option("--record", help="To bench/results.csv.")] = False,
) -> None:
    """Measure and print one table."""
    lines = []
    with tempfile.TemporaryDirectory() as made, Progress(console=Console(stderr=True)) as progress:
        model = Model.chosen(size, dtype, mode, Path(made))
        table = Table("case", "metric", "median", "range", "target", title=f"{model.name}, greedy")
        of_size = "" if size is None else f"{model.name}, "
        for part in [only] if only else PARTS:
            for case, figures in PARTS[part](model, rounds, tokens, progress):
                for metric, values in figures.items():
                    value = f"{statistics.median(values):.4g}"
                    spread = f"{min(values):.4g} to {max(values):.4g}"
                    target = f"≤ {TARGETS[metric]:g}" if metric in TARGETS else ""
                    row = (f"{part}: {of_size}{case}", metric, value, spread)
                    table.add_row(*row, target)
                    lines.append(dict(zip(("case", "metric", "value", "spread"), row, strict=True)))
    Console(width=140).print(table)
    if recorded:
        record.append("look_back", record.asked("bench.look_back"), lines)


if __name__ == "__main__":
    typer.run(main)
