"""The client stops two played engines: what fails in one does not keep the other running."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from divserve.engine.client.gone import ShuttingDown
from divserve.engine.client.guided import GuidedClient


class Engine:
    """The part of ``AsyncLLM`` that is stopped; `broken` is raised by all that is asked of it."""

    def __init__(self, broken: Exception | None = None) -> None:
        self.broken = broken
        self.aborted: list[str] = []
        self.stopped = False
        self.told: list[Exception] = []
        self.engine_core = self
        self.output_processor = SimpleNamespace(
            request_states={"r": SimpleNamespace(queue=SimpleNamespace(put=self.told.append))},
            propagate_error=self.told.append,
        )

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        if self.broken is not None:
            raise self.broken

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped = True
        if self.broken is not None:
            raise self.broken


def client_of(engine: Engine, small: Any = None) -> Any:
    """A client of an engine, without what is only needed to decode."""
    client: Any = object.__new__(GuidedClient)
    client.inner = engine
    client.small = small
    client._hand_off = None if small is None else SimpleNamespace(close=lambda: None)
    client._loop = asyncio.get_running_loop()
    return client


BROKEN: list[tuple[Any, Any]] = [(OSError("large"), None), (None, OSError("small"))]


@pytest.mark.parametrize(("large_error", "small_error"), BROKEN)
def test_all_requests_end_although_an_engine_cannot_be_told(
    large_error: Exception | None, small_error: Exception | None
) -> None:
    async def test() -> None:
        large, small = Engine(large_error), Engine(small_error)
        with pytest.raises(OSError, match=r"large|small"):
            await client_of(large, client_of(small)).end_requests()
        for engine in (large, small):
            assert [type(error) for error in engine.told] == [ShuttingDown]
            assert engine.aborted == ["r"]

    asyncio.run(test())


def test_a_dead_engine_runs_no_requests() -> None:
    async def test() -> None:
        large, small = Engine(), Engine(EngineDeadError())
        await client_of(large, client_of(small)).end_requests()
        assert large.aborted == small.aborted == ["r"]

    asyncio.run(test())


@pytest.mark.parametrize(("large_error", "small_error"), BROKEN)
def test_both_engines_stop_although_one_fails(
    large_error: Exception | None, small_error: Exception | None
) -> None:
    async def test() -> None:
        large, small = Engine(large_error), Engine(small_error)
        with pytest.raises(OSError, match=r"large|small"):
            client_of(large, client_of(small)).shutdown(timeout=1)
        assert large.stopped
        assert small.stopped
        await asyncio.sleep(0)
        for engine in (large, small):
            assert [type(error) for error in engine.told] == [ShuttingDown]

    asyncio.run(test())
