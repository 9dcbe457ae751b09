"""Look-back decoding: costs of a step, of an alarm, in memory; and against kept distributions.

Every figure of a round is a ratio (or a difference) of sides that ran in turn in that round. In
``itl`` they are plain greedy rows on an engine without the store of hidden states (*bare*), the
same on one with it (*plain*), and rows that look back and never find anything near. The product
with the head that look-back may cost is timed inside of the plain steps, so it finds the caches as
they are there.

    python -m bench.look_back                          # all parts, about 15 minutes on two cores
    python -m bench.look_back --only itl --rounds 9    # itl, alarm, memory or distributions
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Annotated, Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from bench import record
from divserve_kernels.history import expected_row, nearest
from tests.support.engine import Engine, counted, order, random_prompt
from tests.support.models import SMOLLM2

VOCAB, HIDDEN, BLOCK = 49_152, 576, 32
OPTIONS: dict[str, Any] = {
    "max_model_len": 2304,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 1024,
    "block_size": BLOCK,
}
LENGTHS = {32: 161, 128: 161, 1024: 1121, 0: 2017}
"""Tokens of a prompt by window (0: all of them). One more than whole blocks: all else comes from
the prefix cache from the second round on."""
BATCHES = (1, 8)
CANDIDATES = (5, 8, 10)
WARM = 4
"""Tokens that every request has before its steps count: no prefill, no head on old positions."""
EVICT = 1 << 26
"""Numbers that are rewritten between calls without an engine, as a forward would."""
TARGETS = {"(look_back − bare − GEMM) / bare, %": 2.0}

Figures = dict[str, list[float]]
"""Values of all rounds by metric."""
Request = tuple[list[int], dict[str, Any] | None]


class Run(NamedTuple):
    """Steps in which all requests decode."""

    steps: list[float]
    """Seconds of each."""
    first: int
    """Tokens that the first request took in them."""
    last: int
    """Tokens that the last one took."""

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(self.steps)


def decode(engine: Engine, requests: Sequence[Request], tokens: int) -> Run:
    """Times steps until the first request has so many tokens more; then aborts them all."""
    from vllm import SamplingParams

    for name, (prompt, extra) in enumerate(requests):
        params = SamplingParams(
            temperature=0, max_tokens=2000, ignore_eos=True, detokenize=False, extra_args=extra
        )
        engine.core.add_request(str(name), {"prompt_token_ids": prompt}, params)
    have = dict.fromkeys(map(str, range(len(requests))), 0)

    def step() -> float:
        start = time.perf_counter()
        outputs = engine.core.step()
        took = time.perf_counter() - start
        have.update({one.request_id: len(one.outputs[0].token_ids) for one in outputs})
        return took

    while min(have.values()) < WARM:
        step()
    before, steps = dict(have), []
    while have["0"] < before["0"] + tokens:
        steps.append(step())
    engine.core.abort_request(list(have))
    assert not any(engine.leftovers().values())
    first, last = ("0", str(len(requests) - 1))
    return Run(steps, have[first] - before[first], have[last] - before[last])


def rotated(names: Sequence[str], number: int) -> Iterator[str]:
    """All names, another one first in every round."""
    turn = number % len(names)
    yield from (*names[turn:], *names[:turn])


def runner_of(engine: Engine) -> Any:
    """vLLM's model runner."""
    return engine.core.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


def timed(owner: Any, name: str) -> list[float]:
    """Seconds of each call of a method of ``owner``."""
    took: list[float] = []
    method = getattr(owner, name)

    def timing(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = method(*args, **kwargs)
        took.append(time.perf_counter() - start)
        return found

    setattr(owner, name, timing)
    return took


def itl(rounds: int, tokens: int, progress: Progress) -> Iterator[tuple[str, Figures]]:
    """Steps without an alarm."""
    bare, engine = Engine(SMOLLM2, **OPTIONS), Engine(SMOLLM2, look_back=True, **OPTIONS)
    alarms = counted(engine.scheduler, "_wait")
    products = timed(runner_of(engine).model, "compute_logits")
    rng = random.Random(0)
    prompts = [random_prompt(rng, max(LENGTHS.values()), VOCAB) for _ in range(max(BATCHES))]
    for (window, length), rows in product(LENGTHS.items(), BATCHES):
        case = f"{rows} rows, window {window or 'all'}, prompts of {length} tokens"
        looking = order("look_back", None, threshold=0, window=window)
        sides = {"bare": (bare, None), "plain": (engine, None), "look_back": (engine, looking)}
        figures: Figures = {}
        for number in progress.track(range(rounds + 1), description=case):
            step, gemm = {}, 0.0
            alarms.clear()
            for name in rotated(list(sides), number):
                products.clear()
                one, extra = sides[name]
                run = decode(one, [(p[:length], extra) for p in prompts[:rows]], tokens)
                step[name] = 1e3 * statistics.median(run.steps)
                if name == "plain":
                    gemm = 1e3 * statistics.median(products[-tokens:])
            over, plain = step["look_back"] - step["bare"], step["bare"]
            found = {
                "bare step, ms": plain,
                "plain / bare (the store alone)": step["plain"] / plain,
                "look_back / plain": step["look_back"] / step["plain"],
                "look_back / bare": step["look_back"] / plain,
                "look_back − bare, ms": over,
                "GEMM, ms": gemm,
                "(look_back − bare − GEMM) / bare, %": 100 * (over - gemm) / plain,
                "alarms a token": len(alarms) / rows / tokens,
            }
            _add(figures, found, number)
        yield case, figures
    bare.close()
    engine.close()


def alarm(rounds: int, tokens: int, progress: Progress) -> Iterator[tuple[str, Figures]]:
    """Steps that all alarm, alone and beside seven plain rows."""
    engine = Engine(SMOLLM2, look_back=True, **OPTIONS)
    alarms = counted(engine.scheduler, "_wait")
    rng = random.Random(1)
    prompts = [random_prompt(rng, LENGTHS[128], VOCAB) for _ in range(max(BATCHES))]
    orders = {f"k={k}": order("look_back", None, threshold=1000, k=k) for k in CANDIDATES}
    sides: dict[str, dict[str, Any] | None] = {"plain": None, **orders}
    figures: dict[str, Figures] = {}
    label = "alarms"
    for number in progress.track(range(rounds + 1), description=label):
        for rows in BATCHES:
            runs, counts = {}, {}
            beside: list[Request] = [(prompt, None) for prompt in prompts[1:rows]]
            for name in rotated(list(sides), number):
                alarms.clear()
                runs[name] = decode(engine, [(prompts[0], sides[name]), *beside], tokens)
                counts[name] = len(alarms) / (runs[name].first + WARM)
            plain = runs.pop("plain")
            usual = plain.seconds / plain.first
            for name, run in runs.items():
                took = run.seconds / run.first
                found = {
                    "alarms a token": counts[name],
                    "time a token / plain": took / usual,
                    "steps a token": len(run.steps) / run.first,
                    "more time an alarm, ms": 1e3 * (took - usual),
                }
                if rows > 1:
                    slow = statistics.quantiles(run.steps, n=20)[-1]
                    found["ITL of the plain rows / plain"] = run.seconds / run.last / usual
                    found["their 95th percentile / plain median"] = slow / statistics.median(
                        plain.steps
                    )
                case = f"{name}, {rows - 1} plain rows beside"
                _add(figures.setdefault(case, {}), found, number)
    engine.close()
    yield from figures.items()


def memory(_rounds: int, _tokens: int, _progress: Progress) -> Iterator[tuple[str, Figures]]:
    """Bytes of a token, as vLLM has laid them out."""
    from divserve.engine.hidden import LAYER, store_of

    engine = Engine(SMOLLM2, look_back=True, **OPTIONS)
    runner = runner_of(engine)
    specs = runner.get_kv_cache_spec()
    size = {name: spec.page_size_bytes / spec.block_size for name, spec in specs.items()}
    config, store = runner.kv_cache_config, store_of(runner.model)
    assert store is not None
    slots = config.num_blocks * BLOCK
    kept = size.pop(LAYER) + store.lse.nbytes / slots
    keys = sum(size.values())
    all_of_it = sum(tensor.size for tensor in config.kv_cache_tensors) / slots
    yield (
        f"{next(iter(specs.values())).dtype}, H = {HIDDEN}, V = {VOCAB}",
        {
            "store with lse, bytes a token": [kept],
            "keys and values, bytes a token": [keys],
            "store / keys and values": [kept / keys],
            "allocated / (keys, values, states)": [all_of_it / (keys + kept - 4)],
            "log-probs in float16, bytes a token": [2.0 * VOCAB],
            "log-probs in float16 / store": [2.0 * VOCAB / kept],
        },
    )
    engine.close()


def sides(rows: int, window: int) -> dict[str, Callable[[], Tensor]]:
    """The smallest KL ``[rows]`` of a step, from its logits, by what is kept of the window."""
    torch.manual_seed(0)
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
    starts, stops = (torch.full((rows,), edge, dtype=torch.int32) for edge in (0, window))

    def by_states() -> Tensor:
        sums = raw.logsumexp(-1)
        probs = (raw - sums[:, None]).exp()
        entropy = -torch.special.entr(probs).sum(-1)
        mu = expected_row(probs, weight)
        lse[-1:] = sums[:1]
        return nearest(states, lse, tables, index, starts, stops, mu, entropy, most=window).kl

    def by_log_probs(kept: Tensor) -> Tensor:
        own = raw.log_softmax(-1)
        probs = own.exp()
        kept[:, window] = own
        cross = torch.bmm(kept[:, :window], probs.to(kept.dtype)[:, :, None])[:, :, 0]
        return ((probs * own).sum(-1, keepdim=True) - cross.float()).amin(-1)

    short = ring.half()
    return {
        "states": by_states,
        "float32 log-probs": lambda: by_log_probs(ring),
        "float16 log-probs": lambda: by_log_probs(short),
    }


def distributions(rounds: int, _tokens: int, progress: Progress) -> Iterator[tuple[str, Figures]]:
    """A step's comparison with the window: from hidden states, and from kept log-probs."""
    scratch = torch.zeros(EVICT)
    for window, rows in product((32, 128, 1024), BATCHES):
        case, figures = f"comparison of {rows} rows, window {window}", Figures()
        calls = sides(rows, window)
        for number in progress.track(range(3 * rounds + 1), description=case):
            took, kl = {}, {}
            for name in rotated(list(calls), number):
                scratch.add_(1)
                start = time.perf_counter()
                kl[name] = calls[name]()
                took[name] = 1e3 * (time.perf_counter() - start)
            found = {f"{name}, ms": value for name, value in took.items()}
            for name in list(calls)[1:]:
                found[f"{name} / states"] = took[name] / took["states"]
                off = (kl[name] - kl["states"]).abs().max()
                found[f"{name}: KL differs by at most, nats"] = float(off)
            _add(figures, found, number)
        yield case, figures


PARTS = {"itl": itl, "alarm": alarm, "memory": memory, "distributions": distributions}


def main(
    only: Annotated[str, typer.Option(help="One part: " + ", ".join(PARTS) + ".")] = "",
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    tokens: Annotated[int, typer.Option(help="Tokens of a side in a round.")] = 24,
    recorded: Annotated[
        bool, typer.Option("--record", help="The figures, into bench/results.csv.")
    ] = False,
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
                    table.add_row(case, metric, value, spread, target)
                    case_of = f"smollm2, {part}: {case}"
                    lines.append(
                        {"case": case_of, "metric": metric, "value": value, "spread": spread}
                    )
    Console(width=140).print(table)
    if recorded:
        record.append("look_back", " ".join(["python -m bench.look_back", *sys.argv[1:]]), lines)


def _add(figures: Figures, found: dict[str, float], number: int) -> None:
    """Keeps what a round found; the first one warms up."""
    for name, value in found.items() if number else ():
        figures.setdefault(name, []).append(value)


if __name__ == "__main__":
    typer.run(main)
