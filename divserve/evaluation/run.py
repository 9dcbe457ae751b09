"""A run: every arm of every task, one arm after another, so that each has the server to itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from divserve.errors import StartupError
from divserve.evaluation import arms
from divserve.evaluation.answers import Answer, Answers
from divserve.evaluation.arms import Arm, Listed
from divserve.evaluation.client import Server
from divserve.evaluation.items import Item, Task
from divserve.evaluation.judges import judged
from divserve.evaluation.origin import Origin
from divserve.evaluation.settings import Settings
from divserve.evaluation.statistics import tempered

__all__ = ["Done", "evaluate"]

Progress = Callable[[str, int, int], None]
"""Told of an arm's name, how many of its answers are there, and how many it has."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished run has, for the report."""

    model: str
    tasks: Sequence[Task]
    greedy: Sequence[Arm]
    sampled: dict[str, Sequence[Arm]]
    """By task: plain decoding, the methods, and their controls."""
    answers: Answers
    sampled_items: int | None

    def greedy_of(self, task: Task) -> Sequence[Arm]:
        """The greedy arms of a task."""
        return self.greedy if task.greedy else ()

    def items(self, task: Task, arm: Arm) -> list[str]:
        """The ids of the items that an arm answered."""
        chosen = task.spread(self.sampled_items) if arm.sampled else task
        return [item.id for item in chosen.items]

    def of(self, task: Task, arm: Arm) -> list[Answer]:
        """The answers of an arm, in the order of the items."""
        return self.answers.all(task.name, arm.name, self.items(task, arm))


async def evaluate(
    settings: Settings, tasks: Sequence[Task], origin: Origin, progress: Progress
) -> Done:
    """Asks for all answers that are not there yet.

    Raises:
        StartupError: the server is not there, refuses a request, or `settings.out` holds another
            run; or a task has nothing to ask.
    """
    if unasked := [task.name for task in tasks if not task.greedy and settings.sampled == 0]:
        raise StartupError(f"{unasked[0]} has only sampled answers: --sampled must be at least 1")
    server = Server(settings.url, settings.key)
    try:
        listed = await server.methods()
        methods = arms.given(settings.methods, listed)
        model = settings.model or await server.model()
        answers = Answers(settings.out, settings.fingerprint(model), origin, settings.resume)
        run = _Run(settings, server, model, listed, answers, progress)
        tasks = [task.spread(settings.limit).capped(settings.max_tokens) for task in tasks]
        greedy = [arms.plain(0), *(arms.of_method(n, d, 0) for n, d in methods.items())]
        done = Done(model, tasks, greedy, {}, answers, settings.sampled)
        for task in tasks:
            for arm in done.greedy_of(task):
                await run.arm(task, arm)
            done.sampled[task.name] = await run.sampled(task, methods)
        return done
    finally:
        await server.close()


@dataclass(frozen=True, slots=True)
class _Run:
    settings: Settings
    server: Server
    model: str
    listed: Mapping[str, Listed]
    answers: Answers
    progress: Progress

    async def arm(self, task: Task, arm: Arm) -> list[Answer]:
        """The answers of one arm."""
        chosen = task.spread(self.settings.sampled) if arm.sampled else task
        missing = [i for i in chosen.items if (task.name, arm.name, i.id) not in self.answers.of]
        done, total = len(chosen.items) - len(missing), len(chosen.items)
        tell = partial(self.progress, f"{task.name}: {arm.name}")
        tell(done, total)
        waiting = iter(missing)

        async def work() -> None:
            nonlocal done
            # One iterator for all workers: each takes the next item.
            for item in waiting:
                self.answers.add(await self._answer(task, item, arm))
                done += 1
                tell(done, total)

        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(self.settings.parallel, len(missing))):
                    workers.create_task(work())
        except* StartupError as errors:
            # The first request that the server refused has ended the others.
            raise _first(errors) from None
        return self.answers.all(task.name, arm.name, [item.id for item in chosen.items])

    async def _answer(self, task: Task, item: Item, arm: Arm) -> Answer:
        seed = self.settings.seed
        answer = await self.server.ask(task.name, item, arm, self.model, seed, self.listed)
        right = await asyncio.to_thread(judged, item, answer.text)
        return answer.model_copy(update={"right": right})

    async def sampled(self, task: Task, methods: Mapping[str, Any]) -> list[Arm]:
        """Runs plain decoding and the methods sampled, with the controls of each method."""
        temperature = self.settings.temperature
        if self.settings.sampled == 0:
            return []
        made = [arms.plain(temperature)]
        base = await self.arm(task, made[0])
        rows = [row for answer in base for row in answer.likeliest]
        for name, decoding in methods.items():
            arm = arms.of_method(name, decoding, temperature)
            answers = await self.arm(task, arm)
            known = [answer.entropy for answer in answers if answer.entropy is not None]
            same = tempered(rows, sum(known) / len(known)) if known else None
            colder = None if same is None else arms.colder(arm, same)
            controls = [c for c in (arms.masked(arm, self.listed), colder) if c is not None]
            for control in controls:
                await self.arm(task, control)
            made += [arm, *controls]
        return made


def _first(errors: BaseExceptionGroup[StartupError]) -> StartupError:
    """The first error of a group."""
    (error, *_) = errors.exceptions
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
