"""Counts the bytes of all tensors that are alive, whoever makes them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CountedBytes"]


class CountedBytes(TorchDispatchMode):
    """While it is entered: the bytes of the storages of tensors that torch's operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, tuple[int, int]] = {}
        """By storage: tensors that use it, and its bytes."""
        self.now = 0
        self.most = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the operation, and counts what it returns."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        users, size = self._alive.get(storage._cdata, (0, storage.nbytes()))
        self._alive[storage._cdata] = users + 1, size
        if not users:
            self.now += size
            self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._freed, storage._cdata)

    def _freed(self, storage: int) -> None:
        users, size = self._alive.pop(storage)
        if users > 1:
            self._alive[storage] = users - 1, size
        else:
            self.now -= size
