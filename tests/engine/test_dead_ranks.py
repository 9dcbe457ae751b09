"""What clients hear when one of several ranks dies: with played ranks."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from vllm.v1.engine import FinishReason
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.exceptions import EngineDeadError

from divserve.engine.client import dead_ranks
from divserve.startup import processes


@pytest.mark.parametrize("owned", [True, False], ids=["one API process", "several"])
def test_what_the_other_ranks_abort_then_is_no_answer(owned: bool) -> None:
    """vLLM ends the other ranks before it says that the engine is dead."""
    manager = SimpleNamespace(failed_proc_name=None) if owned else None
    resources = SimpleNamespace(engine_manager=manager, engine_dead=False)
    processed: list[Any] = []
    processor = SimpleNamespace(process_outputs=processed.append)
    dead_ranks.install(processor, resources)
    outputs = [SimpleNamespace(finish_reason=reason) for reason in (None, FinishReason.ABORT)]
    processor.process_outputs(outputs)
    if manager is not None:
        manager.failed_proc_name = "EngineCore_DP1"
        processor.process_outputs(outputs[:1])
        with pytest.raises(EngineDeadError):
            processor.process_outputs(outputs)
        assert resources.engine_dead
    assert len(processed) == 1 + owned


def test_the_parent_tells_every_api_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed engine cannot say so itself. The others are left alone until then."""
    monkeypatch.setattr(processes, "CLOSE_S", 0.0)
    addresses = [f"ipc://{tmp_path}/{i}" for i in range(2)]
    pipes = [os.pipe() for _ in range(2)]
    ranks = [
        SimpleNamespace(sentinel=pipe[0], name=f"EngineCore_DP{i}") for i, pipe in enumerate(pipes)
    ]
    with zmq.Context() as context:
        sockets = [context.socket(zmq.PULL) for _ in addresses]
        for socket, address in zip(sockets, addresses, strict=True):
            socket.bind(address)
        os.close(pipes[1][1])
        engines = processes._Engines(SimpleNamespace(processes=ranks), addresses)
        engines.monitor_engine_liveness()
        assert engines.failed_proc_name == "EngineCore_DP1"
        for socket in sockets:
            assert socket.poll(5000)
            assert socket.recv() == EngineCoreProc.ENGINE_CORE_DEAD
            socket.close()
    for number in (pipes[0][0], pipes[0][1], pipes[1][0]):
        os.close(number)
