"""The room of the lines, beside requests of clients."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.batches.room import Room
from divserve.errors import TooManyRequests


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test

    asyncio.run(bounded())


async def waits(room: Room, rows: int) -> bool:
    task = asyncio.create_task(room.take(rows))
    await asyncio.sleep(0.12)
    done = task.done()
    task.cancel()
    await asyncio.wait({task})
    if done:
        task.result().release()
    return not done


@pytest.mark.parametrize(
    ("capacity", "limit", "rows"), [(8, None, 4), (1, None, 1), (8, 3, 3), (8, 100, 8)]
)
def test_the_limit_is_half_of_the_engine(capacity: int, limit: int | None, rows: int) -> None:
    assert Room(SimpleNamespace(rows=0), capacity, limit).limit == rows


def test_lines_take_turns_within_the_limit() -> None:
    async def test() -> None:
        room = Room(SimpleNamespace(rows=0), 8, 4)
        first, second = await room.take(2), await room.take(2)
        third = asyncio.create_task(room.take(3))
        fourth = asyncio.create_task(room.take(1))
        await asyncio.sleep(0.12)
        assert not third.done()
        assert first.release() == 2
        assert first.release() == 0
        await asyncio.sleep(0.12)
        # The fourth would fit, but it came later.
        assert not third.done()
        assert not fourth.done()
        second.release()
        (await third).release()
        (await fourth).release()
        assert room.rows == 0

    run(test())


def test_a_line_larger_than_the_limit_runs_alone() -> None:
    async def test() -> None:
        room = Room(SimpleNamespace(rows=0), 8, 2)
        alone = await room.take(6)
        assert await waits(room, 1)
        alone.release()
        assert not await waits(room, 1)

    run(test())


def test_clients_come_first() -> None:
    async def test() -> None:
        clients = SimpleNamespace(rows=8)
        room = Room(clients, 8, 4)
        assert await waits(room, 1)
        clients.rows = 6
        share = await room.take(1)
        assert not await waits(room, 1)
        assert await waits(room, 2)
        share.release()
        room.paused = True
        assert await waits(room, 1)

    run(test())


def test_a_line_that_turns_out_larger() -> None:
    async def test() -> None:
        room = Room(SimpleNamespace(rows=0), 8, 4)
        one, two = await room.take(1), await room.take(1)
        one.weigh(1)
        one.weigh(3)
        assert (room.rows, one.asked) == (4, 3)
        with pytest.raises(TooManyRequests):
            two.weigh(2)
        assert (room.rows, two.asked) == (4, 2)
        assert two.release() == 1
        # Alone it may have more than the limit.
        one.weigh(6)
        assert room.rows == 6
        one.release()

    run(test())
