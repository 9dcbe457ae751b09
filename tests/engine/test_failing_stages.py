"""A stage of a pipeline that fails ends its process: the next one would wait for it forever."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.engine.worker import ranks, worker


class Ended(BaseException):
    """Raised where the process would end."""


class Failing:
    """A worker of vLLM."""

    def execute_model(self) -> None:
        raise RuntimeError("for this test")

    sample_tokens = execute_model


class OfStages(worker._LoudRank, Failing):
    def __init__(self, world_size: int) -> None:
        self.parallel_config = SimpleNamespace(world_size=world_size)


@pytest.mark.parametrize("call", ["execute_model", "sample_tokens"])
@pytest.mark.parametrize(("stages", "raised"), [(1, RuntimeError), (2, Ended)])
def test_only_one_of_several_ends(
    call: str, stages: int, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of the stages has tensor-parallel ranks beside it."""

    def end(*_: Any) -> None:
        raise Ended

    monkeypatch.setattr(os, "kill", end)
    monkeypatch.setattr(ranks, "get_tp_group", lambda: SimpleNamespace(world_size=1))
    monkeypatch.setattr(ranks, "get_world_group", lambda: SimpleNamespace(world_size=stages))
    with pytest.raises(raised):
        getattr(OfStages(stages), call)()
