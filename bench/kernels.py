"""What one guidance call costs: the device's back end, torch, torch.compile and a plain copy.

For each number of rows B and vocabulary V, alternating in the same run:

    fused      the back end that serves this device (`divserve_kernels.backends`)
    torch      the torch back end: the same operation in eager whole-tensor operations
    compiled   torch.compile of the formula (statistics and AdaCAD; needs a C++ compiler on CPU)
    copy       a copy that reads and writes as many bytes as the call must: each pair reads two
               rows and writes one

Every row is AdaCAD, whose weight depends on a statistic, so no cheaper order of passes exists.

    python -m bench.kernels                       # the table of this machine, of its GPU if any
    python -m bench.kernels --rows 8 --vocab 49152 --no-save
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from divserve_contract import Program
from divserve_kernels import Programs, Streams, guide, torch_backend
from divserve_kernels.backends import choose
from loadtest import record

ROWS = [1, 8, 32, 64, 128, 256]
VOCABULARIES = [32_000, 49_152, 128_256, 151_936]
GRAPH_CALLS = 20
"""Calls in one CUDA graph, so that host time between launches is not measured."""


def formula(logits: Tensor, primary: Tensor, second: Tensor) -> Tensor:
    """Statistics and AdaCAD written plainly, for torch.compile.

    Args:
        logits: ``[R, V] float32``; the primary rows are overwritten.
        primary, second: ``[G] int64``.
    """
    z1, z2 = logits[primary], logits[second]
    l1, l2 = z1.log_softmax(-1), z2.log_softmax(-1)
    p1, p2 = l1.exp(), l2.exp()
    log_m = ((p1 + p2) / 2).log()
    jsd = ((p1 * (l1 - log_m)).sum(-1) + (p2 * (l2 - log_m)).sum(-1)) / 2
    kl = (p1.clamp_min(1e-7) * (l1.clamp_min(-16.118) - l2.clamp_min(-16.118))).sum(-1)
    entropy, squares = -(p1 * l1).sum(-1), (p1 * p1).sum(-1)
    logits[primary] = (1 + jsd[:, None]) * z1 - jsd[:, None] * z2
    return torch.stack((entropy, kl, jsd, p1.amax(-1), squares), dim=-1)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; on a GPU, its share of a replayed graph or of a queue of calls."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    start_event, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    call()
    end.record()
    end.synchronize()
    return float(start_event.elapsed_time(end)) / 1e3 / GRAPH_CALLS


def prepared(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The call itself on a CPU; on a GPU, a graph of `GRAPH_CALLS` calls."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            call()
    return graph.replay


def sides(
    count: int, vocab: int, device: torch.device, compiled: Callable[..., Tensor] | None
) -> dict[str, Callable[[], object]]:
    """The calls that are timed, by name."""
    logits = torch.randn(2 * count, vocab, device=device) * 3
    out = torch.empty_like(logits)
    programs = Programs(1, device)
    programs.write({0: Program(jsd_scale=1)})
    streams = Streams.pack(programs, [0] * count, range(0, 2 * count, 2), range(1, 2 * count, 2))
    # Two rows read and one written: a copy of three halves of a row moves as much.
    source = torch.randn(count * vocab * 3 // 2, device=device)
    target = torch.empty_like(source)
    found: dict[str, Callable[[], object]] = {
        "fused": lambda: guide(logits, streams, out=out),
        "torch": lambda: torch_backend.guide(logits, streams, None, out),
        "copy": lambda: target.copy_(source),
    }
    if compiled is not None:
        own = logits.clone()
        found["compiled"] = lambda: compiled(own, streams.primary, streams.guide)
    return {name: prepared(call, device) for name, call in found.items()}


def measure(
    count: int,
    vocab: int,
    device: torch.device,
    rounds: int,
    compiled: Callable[..., Tensor] | None,
) -> dict[str, list[float]]:
    """Seconds of each side, round by round."""
    calls = sides(count, vocab, device, compiled)
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            took[name].append(seconds(call, device))
    return took


def main(
    rows: Annotated[list[int], typer.Option(help="Pairs per call.")] = ROWS,
    vocab: Annotated[list[int], typer.Option(help="Vocabulary.")] = VOCABULARIES,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 15,
    compile_formula: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
    save: Annotated[bool, typer.Option(help="Append to bench/results.csv.")] = True,
) -> None:
    """Measure and print one table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled = torch.compile(formula, dynamic=True) if compile_formula else None
    back_end = choose(device).name
    table = Table("pairs", "V", f"{back_end} µs", "GB/s", "% of copy", "torch ÷", "compiled ÷")
    saved: list[dict[str, str]] = []
    cases = [(count, size) for size in vocab for count in rows]
    for count, size in track(cases, console=Console(stderr=True)):
        took = measure(count, size, device, rounds, compiled)
        middle = {name: statistics.median(values) for name, values in took.items()}
        figures = {
            f"{back_end}, µs": middle["fused"] * 1e6,
            f"{back_end}, GB/s": 3 * count * size * 4 / middle["fused"] / 1e9,
            f"{back_end}, % of a copy": 100 * middle["copy"] / middle["fused"],
            f"torch / {back_end}": middle["torch"] / middle["fused"],
        }
        if compiled is not None:
            figures[f"compiled / {back_end}"] = middle["compiled"] / middle["fused"]
        cells = [f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in figures.values()]
        table.add_row(str(count), f"{size:,}", *cells)
        spread = f"{min(took['fused']) * 1e6:.4g} to {max(took['fused']) * 1e6:.4g} µs"
        case = f"{count} pairs, V={size}"
        saved += [
            {"case": case, "metric": metric, "value": f"{value:.4g}", "spread": spread}
            for metric, value in figures.items()
        ]
    Console().print(table)
    if save:
        record.append("kernels", "python -m bench.kernels", saved)


if __name__ == "__main__":
    typer.run(main)
