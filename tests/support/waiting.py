"""Methods that must not wait for the device, watched while an engine runs."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["WAITED", "forbidden", "watch"]

WAITED = "called a synchronizing CUDA operation"
"""Part of torch's message."""

SetMode = Callable[[str], object]
"""``torch.cuda.set_sync_debug_mode``, or a test's own."""


@contextmanager
def forbidden(set_mode: SetMode) -> Iterator[None]:
    """Inside the block torch raises `RuntimeError` where the host waits for the device.

    Copies between the device and memory that is not pinned wait too. torch does not see
    ``non_blocking`` ones; the static test finds those (`tests/engine/test_no_waiting.py`).
    """
    set_mode("error")
    try:
        yield
    finally:
        set_mode("default")


def watch(
    methods: dict[type, tuple[str, ...]],
    replace: Callable[[Any, str, Any], None],
    set_mode: SetMode,
) -> Counter[str]:
    """Makes waiting an error in these methods.

    Args:
        methods: names by class.
        replace: sets an attribute of a class, and is to undo it: ``monkeypatch.setattr``.
        set_mode: see `SetMode`.

    Returns:
        The calls of each method, counted from now on.
    """
    calls: Counter[str] = Counter()

    def watched(name: str, method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            with forbidden(set_mode):
                return method(*args, **kwargs)

        return call

    for owner, names in methods.items():
        for name in names:
            replace(owner, name, watched(name, getattr(owner, name)))
    return calls
