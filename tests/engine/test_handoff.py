"""The hand-off's bookkeeping on scripted engines: events that a real pair cannot time exactly."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType
from vllm.v1.engine.exceptions import EngineDeadError

from divserve.decoding import Program, Spec, Switch
from divserve.engine.client import hand_off
from divserve.engine.client.gone import EngineStopped
from divserve.engine.client.hand_off import HandOff
from divserve.engine.order import Order
from divserve.engine.reported import Report

ON_SMALL = Switch(1.0, 1, 1)
ON_LARGE = Switch(1.0, 1, 1, "large")


class Core:
    """Records its calls, and raises `broken` if there is one."""

    def __init__(self) -> None:
        self.added: list[str] = []
        self.aborted: list[str] = []
        self.broken: Exception | None = None

    async def add_request_async(self, request: Any) -> None:
        if self.broken is not None:
            raise self.broken
        self.added.append(request.request_id)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        if self.broken is not None and request_ids:
            raise self.broken


class Queue:
    """What the client of an answer waits for."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def put(self, error: Exception) -> None:
        self.errors.append(error)


class Processor:
    """Passes every output on; `stops` are the answers that a stop string ends."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.seen: list[Any] = []
        self.stops: set[str] = set()
        self.errors: list[Exception] = []

    def process_outputs(self, outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        self.seen += outputs
        for output in outputs:
            if output.request_id in self.stops or output.finish_reason is not None:
                self.request_states.pop(output.request_id, None)
        stopped = [o.request_id for o in outputs if o.request_id in self.stops]
        return SimpleNamespace(reqs_to_abort=stopped)

    def propagate_error(self, error: Exception) -> None:
        self.errors.append(error)


class Scene:
    """Two scripted engines, and one answer that begins on the small one."""

    def __init__(self) -> None:
        self.large, self.small = (
            SimpleNamespace(
                engine_core=Core(),
                output_processor=Processor(),
                log_stats=False,
                logger_manager=None,
            )
            for _ in range(2)
        )
        self.hand_off = HandOff(self.large, self.small)
        self.queue = Queue()

    async def begin(self) -> None:
        order = Order(Spec(Program(), switch=ON_SMALL))
        params = SimpleNamespace(extra_args=order.pack(), seed=None)
        self.large.output_processor.request_states["r"] = SimpleNamespace(queue=self.queue)
        request = SimpleNamespace(request_id="r", sampling_params=params)
        await self.large.engine_core.add_request_async(request)

    def token(self, engine: Any, segment: str, switch: Switch | None = None, **fields: Any) -> Any:
        """Makes an engine output a segment's next token."""
        report = Report(statistics=((0.0,),), switch=switch)
        if switch is not None:
            fields |= {"finish_reason": "stop"}
        defaults: dict[str, Any] = {"finish_reason": None, "stop_reason": None, "events": None}
        output = SimpleNamespace(
            request_id=segment,
            new_token_ids=[5],
            kv_transfer_params=None,
            **(defaults | fields),
        )
        report.put_on(output)
        return engine.output_processor.process_outputs([output], 0.0, None)


async def settle() -> None:
    """Lets spawned tasks run."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_switch_moves_the_answer_and_nobody_sees_its_end() -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        assert one.small.engine_core.added == ["r~0"]
        one.token(one.small, "r~0", ON_LARGE)
        await settle()
        assert one.large.engine_core.added == ["r~1"]
        (seen,) = one.large.output_processor.seen
        assert (seen.request_id, seen.finish_reason) == ("r", None)
        report = Report.take_from(seen)
        assert report is not None
        assert report.model == "small"
        one.token(one.large, "r~1", finish_reason="length")
        await settle()
        assert len(one.hand_off) == len(one.hand_off._segments) == 0

    asyncio.run(scene())


def test_the_engine_dies_right_behind_a_switch() -> None:
    """One segment continues, not two, and later segments stay on the large engine."""

    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.token(one.small, "r~0", ON_LARGE)
        one.small.output_processor.propagate_error(RuntimeError("dead"))
        await settle()
        assert one.large.engine_core.added == ["r~1"]
        assert list(one.hand_off._segments) == ["r~1"]
        one.token(one.large, "r~1", ON_SMALL)
        await settle()
        assert one.large.engine_core.added == ["r~1", "r~2"]
        assert one.small.engine_core.added == ["r~0"]
        assert len(one.small.output_processor.errors) == 1

    asyncio.run(scene())


def test_the_engine_dies_in_the_middle_of_a_segment() -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.token(one.small, "r~0")
        one.small.output_processor.propagate_error(RuntimeError("dead"))
        await settle()
        assert one.large.engine_core.added == ["r~1"]

    asyncio.run(scene())


def test_a_stop_string_ends_the_segment_where_it_runs() -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.large.output_processor.stops = {"r"}
        result = one.token(one.small, "r~0")
        await settle()
        assert result.reqs_to_abort == []
        assert one.small.engine_core.aborted == ["r~0"]
        assert one.large.engine_core.aborted == []
        assert len(one.hand_off) == 0

    asyncio.run(scene())


def test_a_stop_string_on_the_token_that_switches() -> None:
    """The segment has already ended: there is nothing to abort and nothing to start."""

    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.large.output_processor.stops = {"r"}
        one.token(one.small, "r~0", ON_LARGE)
        await settle()
        assert one.small.engine_core.aborted == one.large.engine_core.added == []
        assert len(one.hand_off) == 0

    asyncio.run(scene())


def test_an_abort_between_two_segments() -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.token(one.small, "r~0", ON_LARGE)
        await one.large.engine_core.abort_requests_async(["r", "another"])
        await settle()
        assert one.large.engine_core.added == []
        assert one.large.engine_core.aborted == ["another"]
        assert len(one.hand_off) == 0

    asyncio.run(scene())


def test_an_answer_is_queued_once() -> None:
    """vLLM's queue time is that of the first segment."""
    events = [EngineCoreEvent.new_event(kind) for kind in EngineCoreEventType]

    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.token(one.small, "r~0", ON_LARGE, events=list(events))
        await settle()
        one.token(one.large, "r~1", events=list(events))
        first, second = one.large.output_processor.seen
        assert first.events == events
        assert [e.type for e in second.events] == [EngineCoreEventType.PREEMPTED]

    asyncio.run(scene())


@pytest.mark.parametrize("error", [TypeError("not to be packed"), EngineDeadError()])
def test_who_waits_for_an_answer_hears_that_it_cannot_go_on(error: Exception) -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.large.engine_core.broken = error
        one.token(one.small, "r~0", ON_LARGE)
        await settle()
        (heard,) = one.queue.errors
        assert heard is error or isinstance(heard, EngineStopped)
        assert isinstance(heard, EngineDeadError) == isinstance(error, EngineDeadError)
        # vLLM aborts what has failed; nothing of it stays here.
        one.large.engine_core.broken = None
        await one.large.engine_core.abort_requests_async(["r"])
        assert one.large.engine_core.aborted == ["r~1"]
        assert len(one.hand_off) == len(one.hand_off._segments) == 0

    asyncio.run(scene())


def test_an_answer_that_cannot_go_on_although_nobody_waits() -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.large.engine_core.broken = TypeError("not to be packed")
        one.token(one.small, "r~0", ON_LARGE)
        one.large.output_processor.request_states.clear()
        await settle()
        assert one.queue.errors == []
        assert len(one.hand_off) == len(one.hand_off._segments) == 0

    asyncio.run(scene())


def test_an_answer_that_cannot_begin() -> None:
    async def scene() -> None:
        one = Scene()
        one.small.engine_core.broken = TypeError("not to be packed")
        with pytest.raises(TypeError):
            await one.begin()
        assert len(one.hand_off) == len(one.hand_off._segments) == 0

    asyncio.run(scene())


def test_a_segment_that_cannot_be_stopped_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer has ended with a stop string: only the log hears of it."""
    logged: list[str] = []
    monkeypatch.setattr(hand_off.logger, "error", lambda text, **_: logged.append(text))

    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.large.output_processor.stops = {"r"}
        one.small.engine_core.broken = OSError("closed")
        one.token(one.small, "r~0")
        await settle()

    asyncio.run(scene())
    assert logged == ["Segments behind a stop string could not be stopped"]


def test_an_engine_that_cannot_abort_does_not_keep_the_other_from_it() -> None:
    async def scene() -> None:
        one = Scene()
        await one.begin()
        one.small.engine_core.broken = OSError("closed")
        with pytest.raises(OSError, match="closed"):
            await one.large.engine_core.abort_requests_async(["r", "another"])
        assert one.large.engine_core.aborted == ["another"]

    asyncio.run(scene())
