"""Values on their way to a device: from pinned memory, whatever holds them, and empty ones too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from divserve_contract import Program
from divserve_kernels import Programs, Streams
from divserve_kernels.streams import send
from tests.kernels.cases import CPU
from tests.kernels.histories import GPU

CUDA = torch.device("cuda")
VALUES = [
    [[1, 2], [3, 4]],
    np.array([[1, 2], [3, 4]]),
    [(1, 2), (3, 4)],
    [[], []],
    np.zeros((2, 0)),
]


@pytest.mark.parametrize("values", VALUES)
def test_a_gpu_gets_pinned_memory(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the two calls that need a GPU: torch refuses to pin arrays anywhere."""
    pinned: list[Tensor] = []
    sent: list[tuple[Tensor, Any, dict[str, Any]]] = []
    empty_like: Callable[..., Tensor] = torch.empty_like

    def empty(like: Tensor, *, pin_memory: bool) -> Tensor:
        assert pin_memory
        pinned.append(empty_like(like))
        return pinned[-1]

    def to(self: Tensor, device: Any, **options: Any) -> Tensor:
        sent.append((self, device, options))
        return self

    monkeypatch.setattr(torch, "empty_like", empty)
    monkeypatch.setattr(torch.Tensor, "to", to)
    found = send(values, torch.int64, CUDA)
    monkeypatch.undo()
    ((host, device, options),) = sent
    assert (device, options) == (CUDA, {"non_blocking": True})
    assert found.tolist() == np.asarray(values).tolist()
    if host.numel():
        assert host is pinned[0]
    else:
        assert not pinned


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=[pytest.mark.gpu, GPU])])
def test_nothing_is_sent(device: torch.device) -> None:
    """A step without groups, and programs that change where there are none."""
    programs = Programs(1, device)
    programs.write({})
    found = Streams.pack(programs, [], [])
    assert (len(found), found.slot.device.type) == (0, device.type)
    assert not found.forms


@pytest.mark.gpu
@GPU
def test_sending_and_growing_do_not_wait() -> None:
    programs = Programs(1, CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [send(values, torch.int64, CUDA) for values in VALUES]
        programs.write({5: Program(alpha=0.5)})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [t.tolist() for t in found] == [np.asarray(values).tolist() for values in VALUES]
    assert programs.table.shape[1] == 8
