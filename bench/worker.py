"""Python time of the worker's hook in a decoding step, without kernels: µs by number of pairs.

Two kinds of steps are timed: an unchanged batch, as in most steps, and one whose rows have moved,
as after every admission and end. The kernels are left out and the vocabulary is small, so what
remains is our code: it reads the scheduler's output, finds rows, sends index arrays, calls the
stages and gives guide rows their tokens. Rounds of both kinds take turns; the median of each is
printed.

    python -m bench.worker             # half a minute
    python -m bench.worker --record    # appends to bench/results.csv
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from divserve.decoding import STATISTICS, Program
from divserve.engine.order import GroupOrder, row_order_params
from divserve.engine.worker import contrast
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.guidance import GuidanceStages
from divserve.engine.worker.ranks import Ranks
from loadtest import record

VOCAB = 32
CPU = torch.device("cpu")


def output(new: list[Any]) -> Any:
    """The part of a ``SchedulerOutput`` that is read."""
    cached = SimpleNamespace(req_ids=[], num_output_tokens=[], resumed_req_ids=set())
    return SimpleNamespace(
        finished_req_ids=set(), scheduled_new_reqs=new, scheduled_cached_reqs=cached
    )


def pair(name: str) -> Any:
    """The part of the ``NewRequestData`` of a pair's primary that is read."""
    order = GroupOrder(
        program=Program(alpha=0.5),
        guides=(f"{name}~guide",),
        temperature_program=None,
        grounded=False,
        amateurs=0,
        vocab=None,
        output=(),
        look=None,
    )
    return SimpleNamespace(
        req_id=name,
        sampling_params=SimpleNamespace(extra_args=row_order_params(order)),
        prompt_token_ids=[1, 2, 3],
        prefill_token_ids=None,
    )


class Step:
    """Steps of pairs and plain requests."""

    def __init__(self, pairs: int, plain: int) -> None:
        self.stages = GuidanceStages(VOCAB, CPU, Ranks())
        names = [f"cmpl-{number:032x}-0" for number in range(pairs)]
        self.stages.observe(output([pair(name) for name in names]))
        self.req_ids = [one for name in names for one in (name, f"{name}~guide")]
        self.req_ids += [f"cmpl-plain-{number:032x}-0" for number in range(plain)]
        count = len(self.req_ids)
        self.samples = np.ones(count, np.bool_)
        self.logits, self.sampled = torch.zeros(count, VOCAB), torch.zeros(count, 1)
        self.forward = Forward(torch.nn.Module(), lambda states: states, self.logits)
        self.nothing = output([])

    def run(self, moved: bool) -> float:
        """Seconds of one step."""
        if moved:
            self.req_ids = self.req_ids[1:] + self.req_ids[:1]
        start = time.perf_counter()
        self.stages.observe(self.nothing)
        if not self.stages.place(self.req_ids, self.samples):
            raise RuntimeError("nothing is guided")
        if self.stages.guide(self.logits, self.forward) is None:
            raise RuntimeError("guiding has failed")
        self.stages.copy_tokens(self.sampled)
        return time.perf_counter() - start


def main(
    pairs: Annotated[list[int], typer.Option(help="Guided requests at once.")] = [1, 64, 128],  # noqa: B006
    plain: Annotated[int, typer.Option(help="Plain requests beside them.")] = 0,
    rounds: Annotated[int, typer.Option(help="Steps of each kind.")] = 500,
    save: Annotated[bool, typer.Option("--record", help="Append to bench/results.csv.")] = False,
) -> None:
    """Measure and print one table."""
    table = Table("pairs", "same layout, µs", "moved, µs")
    saved = []
    for count in pairs:
        step = Step(count, plain)
        found = torch.zeros(count, len(STATISTICS))
        with mock.patch.object(contrast, "guide", lambda *args, found=found, **options: found):
            for moved in (True, False) * 20:
                step.run(moved)
            seconds = [(step.run(True), step.run(False)) for _ in range(rounds)]
        figures = [count]
        for kind, values in zip(("moved", "same"), zip(*seconds, strict=True), strict=True):
            tenths = [1e6 * value for value in statistics.quantiles(values, n=10)]
            figures.insert(1, round(tenths[4]))
            saved.append(
                {
                    "case": f"{count} pairs, {plain} plain requests, {kind} layout",
                    "metric": "µs of Python a step",
                    "value": f"{tenths[4]:.0f}",
                    "spread": f"{tenths[0]:.0f} to {tenths[8]:.0f} (10 to 90 %)",
                }
            )
        table.add_row(*map(str, figures))
    Console().print(table)
    if save:
        record.append("worker", "python -m bench.worker --record", saved)


if __name__ == "__main__":
    typer.run(main)
