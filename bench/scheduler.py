"""What the lock-step scheduler adds to vLLM's own time per step.

No engine runs: the workers are simulated, so that only ``schedule()`` and ``update_from_output()``
are timed. divserve and stock vLLM take turns step by step, with the same number of rows, all
decoding, and of waiting requests; ``share`` is (divserve − stock) / stock of a round, by lower
quartiles.

    python -m bench.scheduler                     # about a minute
    python -m bench.scheduler --rounds 9 --record
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from divserve.decoding import Program, Spec
from divserve.engine.order import Order
from loadtest import record
from tests.support import models
from tests.support.bare_scheduler import BareScheduler, played

PROMPT = 8
ORDER = Order(Spec(Program(alpha=0.5), [list(range(100, 100 + PROMPT))]))


@dataclass(frozen=True)
class Case:
    """Rows that decode, and requests that wait."""

    name: str
    pairs: int
    plain: int
    queued: int = 0
    target: float | None = None
    """Largest share allowed."""


CASES = (
    Case("1 guided + 255 plain", 1, 255, target=0.03),
    Case("64 pairs + 128 plain", 64, 128),
    Case("128 pairs", 128, 0, target=0.08),
    Case("128 pairs, 400 pairs queued", 128, 0, 400, target=0.08),
)


def filled(cls: type[Any], model: Path, case: Case, guided: bool) -> BareScheduler:
    """A scheduler all of whose rows decode; without guidance a pair is two plain requests."""
    rows = 2 * case.pairs + case.plain
    made = BareScheduler(cls, model, max_rows=rows, max_tokens=8192, blocks=64 * rows)
    longest = 900

    def add(kind: str, count: int) -> None:
        for i in range(count):
            if guided:
                made.add(f"{kind}{i}", PROMPT, ORDER, longest)
            else:
                made.add(f"{kind}{i}a", PROMPT, None, longest)
                made.add(f"{kind}{i}b", PROMPT, None, longest)

    add("pair", case.pairs)
    for i in range(case.plain):
        made.add(f"plain{i}", PROMPT, None, longest)
    for _ in range(4):
        made.step()
    add("queued", case.queued)
    made.step()
    assert len(made.scheduler.running) == rows
    return made


def seconds(made: BareScheduler) -> float:
    """CPU seconds of one step's ``schedule()`` and ``update_from_output()``."""
    scheduler = made.scheduler
    start = time.thread_time()
    output = scheduler.schedule()
    took = time.thread_time() - start
    answer = played(output, list(output.num_scheduled_tokens))
    start = time.thread_time()
    scheduler.update_from_output(output, answer)
    return took + time.thread_time() - start


def measured(sides: dict[str, BareScheduler], steps: int) -> dict[str, float]:
    """The lower quartile of each side's alternating steps: other load only adds time."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps):
        for name, side in sides.items():
            times[name].append(seconds(side))
    return {name: statistics.quantiles(found, n=4)[0] for name, found in times.items()}


def main(
    rounds: Annotated[int, typer.Option(help="Rounds of each case.", min=1)] = 15,
    steps: Annotated[int, typer.Option(help="Steps of a side in a round.", min=4)] = 40,
    recorded: Annotated[bool, typer.Option("--record", help="Append to results.csv.")] = False,
) -> None:
    """Prints each case's times and share."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from divserve.engine.scheduler.scheduler import LockstepScheduler

    table = Table(title="The scheduler's own time per step")
    for column in ("case", "stock, µs", "divserve, µs", "share", "range", "target"):
        table.add_column(column, justify="left" if column == "case" else "right")
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        model = models.make_tiny(Path(folder))
        for case in CASES:
            sides = {
                "stock": filled(Scheduler, model, case, guided=False),
                "divserve": filled(LockstepScheduler, model, case, guided=True),
            }
            found = [measured(sides, steps) for _ in range(rounds)]
            shares = sorted(times["divserve"] / times["stock"] - 1 for times in found)
            share = statistics.median(shares)
            spread = f"{shares[0]:.3f} to {shares[-1]:.3f}"
            micros = {name: statistics.median(t[name] for t in found) * 1e6 for name in sides}
            table.add_row(
                case.name, f"{micros['stock']:.0f}", f"{micros['divserve']:.0f}", f"{share:.1%}",
                spread, "" if case.target is None else f"≤ {case.target:.0%}",
            )  # fmt: skip
            figures.append(
                {"case": case.name, "metric": "share of vLLM's time", "value": f"{share:.4f}",
                 "spread": spread}
            )  # fmt: skip
    Console().print(table)
    if recorded:
        record.append("scheduler", record.asked("bench.scheduler"), figures)


if __name__ == "__main__":
    typer.run(main)
