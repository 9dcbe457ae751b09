"""Sends the arrays of a new layout of the batch to the device in one copy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["Staging"]

CHUNK = 1 << 14
"""Bytes per copy; what does not fit goes into another one."""
ALIGNMENT = 8
DTYPES = {
    np.dtype(np.int64): torch.int64,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.bool_): torch.bool,
}


class Staging:
    """A pinned buffer for arrays of one or two axes, and the tensors that get their values.

    Each is used for one layout only: the device may still read the buffers of the layout before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._begin(CHUNK)

    def _begin(self, size: int) -> None:
        pinned = self.device.type == "cuda"
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._target = torch.empty_like(self._host, device=self.device) if pinned else self._host
        self._used = 0
        self._views: dict[np.dtype, tuple[np.ndarray, Tensor]] = {}

    def put(self, values: np.ndarray) -> Tensor:
        """A device tensor with these values, shape and dtype, valid after `send`."""
        used = -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        if self._used + used > len(self._host):
            self.send()
            self._begin(max(CHUNK, used))
        if (views := self._views.get(values.dtype)) is None:
            dtype = DTYPES[values.dtype]
            views = self._host.view(dtype).numpy(), self._target.view(dtype)
            self._views[values.dtype] = views
        host, target = views
        size, start = values.size, self._used // values.itemsize
        host[start : start + size] = values.ravel()
        self._used += used
        steps = (values.shape[1], 1) if values.ndim == 2 else (1,)
        return target.as_strided(values.shape, steps, start)

    def send(self) -> None:
        """Sends everything without waiting for the device."""
        if self._target is not self._host:
            used = slice(0, self._used)
            self._target[used].copy_(self._host[used], non_blocking=True)
