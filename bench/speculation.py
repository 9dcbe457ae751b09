"""What guided requests with drafts cost: time per token ÷ that of plain ones, and of both without.

One engine with n-gram look-up runs, in turn in each round and over the same documents,

    plain             without drafts
    guided            without drafts
    plain + lookup    with vLLM's n-gram look-up
    guided + lookup   with drafts from the document, the prompt and the answer

"without" takes the drafter off the runner, so that a step takes the path of an engine started
without one. Requests that end are replaced until twice as many as run at once have begun, and the
clock stops when fewer run: with drafts some end much earlier than others, and a server that is used
steadily does not wait for the last. The prefixes of a round's prompts are cached before it. Seconds
are those of the wall clock and, where other work shares the machine, of the process's own CPU time.
Ratios are taken within a round; the median and the range over the rounds are reported. With
``--drafts`` the sides are guided requests with vLLM's look-up and with ours, and all that is
proposed is verified.

    python -m bench.speculation                                     # two hours on two cores
    python -m bench.speculation --task copying --at-once 1 --at-once 8 --rounds 4
    python -m bench.speculation --drafts --at-once 1 --record
    python -m bench.speculation --quick --size tiny --dtype float32     # whether it runs
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.material import Task, prompts, random_prompts
from bench.rounds import Figures, keep, rotated, summary
from bench.sizes import DtypeOption, Mode, Model, ModeOption, SizeOption, synchronize
from divserve.engine.scheduler.governor import OPTION
from loadtest import record
from tests.support.engine import Engine, order

DRAFTS = 8
UNGOVERNED = {"additional_config": {OPTION: False}}
"""Arguments of an engine that verifies everything that is proposed."""
LOOKUP = {"prompt_lookup_min": 1, "prompt_lookup_max": 4}
CLOCKS = ("wall", "cpu")


@dataclass(frozen=True)
class Side:
    """What is compared."""

    name: str
    guided: bool
    drafts: bool
    ours: bool = True
    """Whether drafts of guided requests come from our look-up."""


PLAIN, GUIDED = Side("plain", False, False), Side("guided", True, False)
PLAIN_LOOKUP = Side("plain + lookup", False, True)
GUIDED_LOOKUP = Side("guided + lookup", True, True)
GUIDED_NGRAM = Side("guided + n-gram", True, True, ours=False)
SIDES = {
    False: (PLAIN, GUIDED, PLAIN_LOOKUP, GUIDED_LOOKUP),
    True: (GUIDED, GUIDED_NGRAM, GUIDED_LOOKUP),
}
"""By ``--drafts``."""


@dataclass
class Run:
    """What a side has done; of guided requests their primaries alone."""

    rounds: int = 0
    """Verifications: times that a request has taken tokens."""
    tokens: int = 0
    proposed: int = 0
    answers: int = 0
    alike: int = 0
    """Answers that are those without drafts."""
    wall: float = 0.0
    """Seconds."""
    cpu: float = 0.0
    """Seconds of the process."""

    def update(self, output: Any, made: Any) -> None:
        """Counts a step, by vLLM's ``SchedulerOutput`` and ``ModelRunnerOutput``."""
        for name, taken in zip(made.req_ids, made.sampled_token_ids, strict=True):
            if taken and "~" not in name:
                self.rounds += 1
                self.tokens += len(taken)
                self.proposed += len(output.scheduled_spec_decode_tokens.get(name, ()))

    def add(self, other: Run) -> None:
        """Adds another run's counts and seconds."""
        for one in fields(Run):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


class Bench:
    """An engine with a drafter that can be taken off."""

    def __init__(
        self, model: Model, method: str, tokens: int, at_once: int, governed: bool
    ) -> None:
        self._model, self._method, self._tokens = model, method, tokens
        drafter = "ngram_gpu" if model.options.get("asynchronous") else "ngram"
        options = {
            "max_num_seqs": 2 * at_once,
            "max_num_batched_tokens": 1024,
            "max_model_len": 1024,
            "enable_prefix_caching": True,
            **({} if governed else UNGOVERNED),
            **model.options,
        }
        config = {"method": drafter, "num_speculative_tokens": DRAFTS, **LOOKUP}
        self.engine = Engine(model.path, speculative_config=config, **options)
        executor: Any = self.engine.core.model_executor
        self._runner = executor.driver_worker.worker.model_runner
        tokenizer = (model.path / "tokenizer.json").exists()
        self._tokenizer: Any = self.engine.llm.get_tokenizer() if tokenizer else None

    @contextmanager
    def _acting(self, side: Side) -> Iterator[None]:
        runner, scheduler = self._runner, self.engine.scheduler
        found: list[Any] = []
        if not side.drafts:
            lookup = [0] * len(scheduler.dynamic_sd_lookup)
            found.append(mock.patch.object(scheduler, "num_spec_tokens", 0))
            found.append(mock.patch.object(scheduler, "dynamic_sd_lookup", lookup))
            if hasattr(runner, "divserve_lookup"):
                # Model runner V1: it would still ask its drafter.
                found.append(mock.patch.object(runner, "speculative_config", None))
                runner._draft_token_ids = runner._draft_token_req_ids = None
        elif not side.ours:
            found.append(mock.patch.object(runner, "divserve_lookup", None))
        for one in found:
            one.start()
        try:
            yield
        finally:
            for one in found:
                one.stop()

    def _batch(self, side: Side, pairs: list[tuple[list[int], list[int]]], most: int) -> list[Any]:
        from vllm import SamplingParams

        batch = []
        for prompt, guide in pairs:
            extra = order(self._method, guide) if side.guided else None
            params = SamplingParams(
                temperature=0, max_tokens=most, detokenize=False, extra_args=extra
            )
            batch.append((prompt, params))
        return batch

    def _pairs(self, task: Task, count: int, number: int) -> list[tuple[list[int], list[int]]]:
        if self._tokenizer is None:
            return random_prompts(self._model.vocab, count, number)
        return prompts(self._tokenizer, task, count, number)

    def run(
        self, side: Side, pairs: list[tuple[list[int], list[int]]], at_once: int
    ) -> tuple[Run, dict[str, Any]]:
        """Runs requests as a side; what it did, and the token ids of those that ended."""
        run, update = Run(), self.engine.scheduler.update_from_output

        def counting(output: Any, made: Any) -> Any:
            run.update(output, made)
            return update(output, made)

        batch = self._batch(side, pairs, self._tokens)
        with (
            self._acting(side),
            mock.patch.object(self.engine.scheduler, "update_from_output", counting),
        ):
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            answers = self._answers(batch, at_once)
            synchronize()
            run.wall, run.cpu = time.perf_counter() - wall, time.process_time() - cpu
            self._empty()
        return run, answers

    def _answers(self, batch: list[Any], at_once: int) -> dict[str, Any]:
        """Answers by request id, until fewer requests than that run."""
        core, left = self.engine.core, iter(enumerate(batch))
        answers: dict[str, Any] = {}

        def begin(count: int) -> int:
            begun = [*islice(left, count)]
            for number, (prompt, params) in begun:
                core.add_request(str(number), {"prompt_token_ids": prompt}, params)
            return len(begun)

        begin(at_once)
        while True:
            ended = [output for output in core.step() if output.finished]
            answers |= {o.request_id: list(o.outputs[0].token_ids) for o in ended}
            if begin(len(ended)) < len(ended):
                return answers

    def _empty(self) -> None:
        """Ends the requests that still run."""
        core = self.engine.core
        core.abort_request(list(core.output_processor.request_states), internal=True)
        while core.has_unfinished_requests():
            core.step()

    def round(
        self, sides: tuple[Side, ...], task: Task, count: int, number: int
    ) -> dict[Side, Run]:
        """What all sides do on the same documents."""
        pairs = self._pairs(task, 2 * count, number)
        for side in (PLAIN, GUIDED):
            with self._acting(side):
                self.engine.generate(self._batch(side, pairs, 1))
        found: dict[Side, Run] = {}
        answers: dict[Side, Any] = {}
        for side in rotated(sides, number):
            found[side], answers[side] = self.run(side, pairs, count)
        for side, run in found.items():
            wanted = answers[GUIDED if side.guided else PLAIN]
            both = wanted.keys() & answers[side].keys()
            run.answers = len(both)
            run.alike = sum(answers[side][name] == wanted[name] for name in both)
        return found


def figures_of(runs: dict[Side, Run], drafts: bool) -> dict[str, float]:
    """The figures of a round."""
    last = GUIDED_LOOKUP
    found: dict[str, float] = {}
    for clock in CLOCKS:
        each = {side: getattr(run, clock) / run.tokens for side, run in runs.items()}
        others = [side for side in SIDES[drafts] if side is not last]
        found |= {f"{last.name} / {side.name}, {clock}": each[last] / each[side] for side in others}
        found |= {f"{side.name}, {clock} ms a token": 1e3 * took for side, took in each.items()}
    return found


def totals_of(runs: dict[Side, Run]) -> dict[str, tuple[str, str]]:
    """Of all rounds together: tokens a round, and accepted drafts with their share."""
    found: dict[str, tuple[str, str]] = {}
    for side, run in runs.items():
        if side.drafts:
            accepted = run.tokens - run.rounds
            found[f"{side.name}, tokens a round"] = (f"{run.tokens / run.rounds:.3f}", "")
            found[f"{side.name}, drafts accepted"] = (
                f"{accepted / max(run.proposed, 1):.3f}",
                f"{accepted} of {run.proposed}",
            )
            found[f"{side.name}, answers as without drafts"] = (
                f"{run.alike / run.answers:.3f}",
                f"{run.alike} of {run.answers}",
            )
    return found


def measure(
    bench: Bench, task: Task, count: int, rounds: int, drafts: bool
) -> dict[str, tuple[str, str]]:
    """Value and spread of every metric, in a case."""
    sides, figures = SIDES[drafts], Figures()
    totals = {side: Run() for side in sides}
    for number in range(rounds + 1):
        runs = bench.round(sides, task, count, number)
        keep(figures, figures_of(runs, drafts), number)
        for side, run in runs.items() if number else ():
            totals[side].add(run)
    digits = {name: 1 if name.endswith("token") else 3 for name in figures}
    return {name: summary(values, digits[name]) for name, values in figures.items()} | totals_of(
        totals
    )


def main(
    task: Annotated[list[Task], typer.Option(help="What is asked for.")] = list(Task),  # noqa: B006
    at_once: Annotated[list[int], typer.Option(help="Requests that run.")] = [1, 2, 4, 8, 16],  # noqa: B006
    model: Annotated[Path | None, typer.Option(help="A folder, in place of SmolLM2.")] = None,
    size: SizeOption = None,
    dtype: DtypeOption = "bfloat16",
    mode: ModeOption = Mode.EAGER,
    method: Annotated[str, typer.Option(help="Decoding method.")] = "adacad",
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 64,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 7,
    drafts: Annotated[bool, typer.Option("--drafts", help="vLLM's look-up against ours.")] = False,
    governor: Annotated[bool, typer.Option(help="Verify only drafts that are to pay.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="One short round of two tasks.")] = False,
    save: Annotated[bool, typer.Option("--record", help="Append to bench/results.csv.")] = False,
) -> None:
    """Measure and print one table."""
    if quick:
        task, at_once, rounds, tokens = [Task.COPY, Task.EDIT], [2], 1, 8
    console, saved = Console(), []
    with tempfile.TemporaryDirectory() as made, Progress(console=Console(stderr=True)) as progress:
        chosen = Model.chosen(size, dtype, mode, Path(made))
        if model is not None:
            chosen = Model(model.name, model, chosen.vocab, chosen.hidden, chosen.options)
        governed = governor and not drafts
        bench = Bench(chosen, method, tokens, max(at_once), governed)
        bar = progress.add_task(chosen.name, total=len(task) * len(at_once))
        for one in task:
            for count in at_once:
                case = f"{chosen.name}, {one}, {count} always, {tokens} tokens, {method}, greedy"
                if not governed:
                    case += ", all verified"
                found = measure(bench, one, count, rounds, drafts)
                table = Table("metric", "median", "range", title=case)
                for metric, (value, spread) in found.items():
                    table.add_row(metric, value, spread)
                    saved.append({"case": case, "metric": metric, "value": value, "spread": spread})
                console.print(table)
                progress.advance(bar)
        bench.engine.close()
    if save:
        record.append("speculation", record.asked("bench.speculation"), saved)


if __name__ == "__main__":
    typer.run(main)
