"""A hanging engine is detected, and silence for other reasons is not a hang: with fake engines."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.engine.exceptions import EngineDeadError

from divserve.engine.client import watchdog
from divserve.engine.client.watchdog import LONGEST_TICK_S, Watch, checked, watching
from divserve.errors import StartupError
from tests.support.losses import gone

TIMEOUT_S = 300.0
DAY_S = 86_400.0
PARENT = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"

Answer = Callable[[], Awaitable[Any]]


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> bool:
    return True


async def fails() -> None:
    raise RuntimeError("for this test")


class Engine:
    """The part of ``AsyncLLM`` that is watched."""

    def __init__(self, answer: Answer = never, processes: Any = ()) -> None:
        manager = SimpleNamespace(processes=processes) if processes else None
        self.resources = SimpleNamespace(engine_dead=False, engine_manager=manager)
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        self.engine_core = self
        self.model_config = SimpleNamespace(served_model_name="smol")
        self.asked = 0
        self.answer = answer

    @property
    def errored(self) -> bool:
        return bool(self.resources.engine_dead)

    async def is_scheduler_paused_async(self) -> Any:
        self.asked += 1
        return await self.answer()


def watched(
    engine: Engine, busy: Callable[[float], bool] = lambda now: True, until: float = DAY_S
) -> float:
    """Watches with a fake clock; the seconds until the engine is given up, at most `until`."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > until:
            raise TimeoutError
        # Two iterations of the loop: a question is sent in one and answered in the next.
        for _ in range(2):
            await asyncio.sleep(0)

    async def test() -> None:
        await Watch(engine, lambda: busy(now), TIMEOUT_S, sleep).run()

    try:
        asyncio.run(test())
    except TimeoutError:
        return until
    return now


def test_a_silent_engine_is_given_up() -> None:
    engine = Engine()
    assert TIMEOUT_S <= watched(engine) <= TIMEOUT_S + 2 * LONGEST_TICK_S
    assert engine.asked == 1
    assert engine.errored
    assert isinstance(engine.outputs_queue.get_nowait(), EngineDeadError)


@pytest.mark.parametrize("answer", [at_once, fails])
def test_any_answer_is_a_sign_of_life(answer: Answer) -> None:
    """Such as the answer of a paused engine, which sends nothing else."""
    engine = Engine(answer)
    assert watched(engine) == DAY_S
    assert engine.asked > DAY_S / TIMEOUT_S
    assert not engine.errored


def test_ranks_without_their_coordinator_are_given_up() -> None:
    """Also when they have no requests: the next one might wait forever."""
    engine = Engine(at_once)
    engine.resources.coordinator = SimpleNamespace(proc=SimpleNamespace(exitcode=None))
    assert watched(engine, busy=lambda now: False) == DAY_S
    engine.resources.coordinator.proc.exitcode = -9
    assert watched(engine, busy=lambda now: False) <= LONGEST_TICK_S
    assert isinstance(engine.outputs_queue.get_nowait(), EngineDeadError)


class Ranks(Engine):
    """Two data-parallel ranks, asked by vLLM's own client; the second one is silent."""

    is_scheduler_paused_async: Any = AsyncMPClient.is_scheduler_paused_async
    call_utility_consensus_async = AsyncMPClient.call_utility_consensus_async
    call_utility_all_async = AsyncMPClient.call_utility_all_async
    core_engines = (b"0", b"1")

    async def _call_utility_async(self, method: str, *, engine: bytes) -> Any:
        self.asked += 1
        return await (at_once() if engine == b"0" else never())


def test_one_silent_rank_is_noticed_although_the_other_answers() -> None:
    ranks = Ranks()
    assert watched(ranks) <= TIMEOUT_S + 2 * LONGEST_TICK_S
    assert ranks.asked == 2
    assert ranks.errored


def test_an_idle_engine_is_left_alone() -> None:
    engine = Engine()
    assert watched(engine, busy=lambda now: False) == DAY_S
    assert engine.asked == 0


def test_a_long_step_is_no_hang() -> None:
    """An answer comes just in time, again and again."""
    loops = 0

    async def late() -> None:
        nonlocal loops
        loops += 1
        for _ in range(2 * int(TIMEOUT_S / LONGEST_TICK_S) - 4):
            await asyncio.sleep(0)

    assert watched(Engine(late)) == DAY_S
    assert loops > 100


def test_clients_that_give_up_first_hide_nothing() -> None:
    """Each waits for 20 s and returns after another 20 s: all of their waiting time is counted."""
    took = watched(Engine(), busy=lambda now: now % 40 < 20)
    assert 1.8 * TIMEOUT_S < took < 2.2 * TIMEOUT_S


def test_a_watch_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    monkeypatch.setattr(watchdog.logger, "error", lambda text, **why: logged.append((text, why)))
    error = RuntimeError("for this test")

    def fail() -> bool:
        raise error

    async def test() -> None:
        client = SimpleNamespace(inner=Engine(), large_works=fail, small=None)
        with watching(client, 0.01):
            while not logged:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(test(), 10))
    ((text, why),) = logged
    assert "a hang would not be noticed" in text
    assert why == {"exc_info": error}


def test_a_dead_engine_is_watched_no_more() -> None:
    engine = Engine()

    async def dies() -> None:
        engine.resources.engine_dead = True
        await never()

    engine.answer = dies
    assert watched(engine) < TIMEOUT_S
    assert engine.outputs_queue.empty()


def test_a_stopped_process_is_ended_with_its_workers() -> None:
    """SIGTERM would stay pending forever."""
    with subprocess.Popen([sys.executable, "-c", PARENT]) as process:
        parent = psutil.Process(process.pid)
        while not (workers := parent.children()):
            pass
        process.send_signal(signal.SIGSTOP)
        watched(Engine(processes=[process]))
        assert process.wait(10) == -signal.SIGKILL
    assert gone(workers)


@pytest.mark.parametrize("both", [True, False])
def test_both_engines_are_watched(both: bool) -> None:
    async def test() -> None:
        engines = [Engine() for _ in range(1 + both)]
        client = SimpleNamespace(inner=engines[0], small=None, large_works=lambda: True)
        if both:
            client.small = SimpleNamespace(inner=engines[1])
            client.small_works = lambda: True
        with watching(client, 0):
            await asyncio.sleep(0.1)
        assert [engine.asked for engine in engines] == [0] * len(engines)
        with watching(client, 0.2):
            async with asyncio.timeout(20):
                while not all(engine.errored for engine in engines):
                    await asyncio.sleep(0.01)
        with watching(SimpleNamespace(**vars(client) | {"inner": Engine()}), 100):
            pass
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_timeout_that_makes_no_sense(value: float) -> None:
    with pytest.raises(StartupError, match="--engine-timeout is at least 0, not"):
        checked(value)
    assert checked(0) == 0
