"""What look-back decoding costs: in steps without and with an alarm, in memory, per comparison.

Figures are ratios and differences of sides that ran in turn in one round. In ``itl`` the sides are
plain greedy rows on an engine without the store of hidden states (*bare*), the same rows on an
engine with it (*plain*), and rows that look back and find nothing near. The product with the head,
which the target allows for (GEMM), is timed inside the plain steps, with the caches as they are
there.

    python -m bench.look_back                         # all parts, about 15 minutes on two cores
    python -m bench.look_back --only itl --rounds 9   # itl, alarm, memory or distributions
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Annotated, Any

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from divserve_kernels.history import expected_row, nearest
from loadtest import record
from tests.support.engine import Engine, counted, order, random_prompt
from tests.support.models import SMOLLM2

VOCAB, HIDDEN, BLOCK = 49_152, 576, 32
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
EVICT = 1 << 26
"""Numbers that are overwritten between calls without an engine, as a forward would do."""
TARGETS = {"(look_back − bare − GEMM) / bare, %": 2.0}

Figures = dict[str, list[float]]
"""Values of all rounds, by metric."""
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


def rotated(names: Sequence[str], number: int) -> Sequence[str]:
    """All names, with another one first in every round."""
    return [names[(number + i) % len(names)] for i in range(len(names))]


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


def opened() -> tuple[Engine, Any, list[list[int]]]:
    """An engine with the store, its model runner, and prompts."""
    engine, rng = Engine(SMOLLM2, look_back=True, **OPTIONS), random.Random(0)
    worker = engine.core.engine_core.engine_core.model_executor.driver_worker.worker
    prompts = [random_prompt(rng, max(LENGTHS.values()), VOCAB) for _ in range(max(BATCHES))]
    return engine, worker.model_runner, prompts


def itl(rounds: int, tokens: int, progress: Progress) -> Iterator[tuple[str, Figures]]:
    """Steps without an alarm."""
    (engine, runner, prompts), bare = opened(), Engine(SMOLLM2, **OPTIONS)
    alarms, gemm = counted(engine.scheduler, "_wait"), timed(runner.model, "compute_logits")
    for (window, length), rows in product(LENGTHS.items(), BATCHES):
        case = f"{rows} rows, window {window or 'all'}, prompts of {length} tokens"
        looking = order("look_back", None, threshold=0, window=window)
        sides = {"bare": (bare, None), "plain": (engine, None), "look_back": (engine, looking)}
        figures: Figures = {}
        for number in progress.track(range(rounds + 1), description=case):
            ms = {}
            for name in rotated(list(sides), number):
                one, extra = sides[name]
                steps, *_ = decode(one, [(p[:length], extra) for p in prompts[:rows]], tokens)
                ms[name] = 1e3 * statistics.median(steps)
                if name == "plain":
                    ms["GEMM"] = statistics.median(gemm[-tokens:])
            over = ms["look_back"] - ms["bare"]
            found = {
                "bare step, ms": ms["bare"],
                "plain / bare (the store alone)": ms["plain"] / ms["bare"],
                "look_back / plain": ms["look_back"] / ms["plain"],
                "look_back / bare": ms["look_back"] / ms["bare"],
                "look_back − bare, ms": over,
                "GEMM, ms": ms["GEMM"],
                "(look_back − bare − GEMM) / bare, %": 100 * (over - ms["GEMM"]) / ms["bare"],
                "alarms": len(alarms),
            }
            alarms.clear()
            _add(figures, found, number)
        yield case, figures
    bare.close()
    engine.close()


def alarm(rounds: int, tokens: int, progress: Progress) -> Iterator[tuple[str, Figures]]:
    """Steps that are all alarms, alone and beside seven plain rows."""
    engine, _, prompts = opened()
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
            _add(figures.setdefault(f"{name}, {rows - 1} rows beside", {}), found, number)
    engine.close()
    yield from figures.items()


def memory(*_: Any) -> Iterator[tuple[str, Figures]]:
    """Bytes per token, as vLLM lays them out."""
    from divserve.engine.models.hidden_store import LAYER

    engine, runner, _prompts = opened()
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
        "float16 log-probs / store": 2 * VOCAB / kept,
    }
    yield str(specs[LAYER].dtype), {name: [value] for name, value in found.items()}
    engine.close()


def sides(rows: int, window: int) -> dict[str, Callable[[], Tensor]]:
    """Functions that return a step's smallest KLs ``[rows]``, by what is kept of the window."""
    weight, pages = torch.randn(VOCAB, HIDDEN) * 0.13, -(-window // BLOCK)
    states = torch.randn(rows * pages, BLOCK, HIDDEN)
    tables = torch.arange(rows * pages, dtype=torch.int32).view(rows, pages)
    lse, index = torch.empty(rows * pages * BLOCK + 1), torch.arange(rows)
    # The last place is for the step's own.
    ring = torch.empty(rows, window + 1, VOCAB)
    for row in range(rows):
        logits = states.view(rows, -1, HIDDEN)[row] @ weight.T
        lse[:-1].view(rows, -1)[row] = logits.logsumexp(-1)
        ring[row, :window] = logits[:window].log_softmax(-1)
    raw = torch.randn(rows, HIDDEN) @ weight.T
    first, stop = (torch.full((rows,), edge, dtype=torch.int32) for edge in (0, window))

    def by_states() -> Tensor:
        probs = (raw - raw.logsumexp(-1)[:, None]).exp()
        entropy, mu = -torch.special.entr(probs).sum(-1), expected_row(probs, weight)
        return nearest(states, lse, tables, index, first, stop, mu, entropy, most=window).kl

    def by_log_probs(kept: Tensor) -> Tensor:
        own = raw.log_softmax(-1)
        probs = own.exp()
        kept[:, window] = own
        cross = torch.bmm(kept[:, :window], probs.to(kept.dtype)[:, :, None])[:, :, 0]
        return ((probs * own).sum(-1, keepdim=True) - cross.float()).amin(-1)

    kept = {"float32 log-probs": ring, "float16 log-probs": ring.half()}
    return {"states": by_states} | {n: lambda ring=r: by_log_probs(ring) for n, r in kept.items()}


def distributions(rounds: int, _tokens: int, progress: Progress) -> Iterator[tuple[str, Figures]]:
    """A step's comparison with the window: from hidden states, and from kept log-probs."""
    scratch = torch.zeros(EVICT)
    for window, rows in product((32, 128, 1024), BATCHES):
        case, figures, calls = f"{rows} rows, window {window}", Figures(), sides(rows, window)
        for number in progress.track(range(3 * rounds + 1), description=case):
            kl, found = {}, {}
            for name in rotated(list(calls), number):
                scratch.add_(1)
                start = time.perf_counter()
                kl[name] = calls[name]()
                found[f"{name}, ms"] = 1e3 * (time.perf_counter() - start)
            for name in list(calls)[1:]:
                found[f"{name} / states"] = found[f"{name}, ms"] / found["states, ms"]
                found[f"{name}: KL off by"] = float((kl[name] - kl["states"]).abs().max())
            _add(figures, found, number)
        yield case, figures


PARTS = {"itl": itl, "alarm": alarm, "memory": memory, "distributions": distributions}


def main(
    only: Annotated[str, typer.Option(help="One part: " + ", ".join(PARTS) + ".")] = "",
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    tokens: Annotated[int, typer.Option(help="Tokens per side and round.")] = 24,
    recorded: Annotated[bool, typer.Option("--record", help="To bench/results.csv.")] = False,
) -> None:
    """Measure and print one table."""
    table = Table("case", "metric", "median", "range", "target", title="smollm2, greedy")
    lines = []
    with Progress(console=Console(stderr=True)) as progress:
        for part in [only] if only else PARTS:
            for case, figures in PARTS[part](rounds, tokens, progress):
                for metric, values in figures.items():
                    value = f"{statistics.median(values):.4g}"
                    spread = f"{min(values):.4g} to {max(values):.4g}"
                    target = f"≤ {TARGETS[metric]:g}" if metric in TARGETS else ""
                    row = (f"{part}: {case}", metric, value, spread)
                    table.add_row(*row, target)
                    lines.append(dict(zip(("case", "metric", "value", "spread"), row, strict=True)))
    Console(width=140).print(table)
    if recorded:
        record.append("look_back", " ".join(["python -m bench.look_back", *sys.argv[1:]]), lines)


def _add(figures: Figures, found: dict[str, float], number: int) -> None:
    """Keeps the values of a round; the first round is a warm-up."""
    for name, value in found.items() if number else ():
        figures.setdefault(name, []).append(value)


if __name__ == "__main__":
    typer.run(main)
