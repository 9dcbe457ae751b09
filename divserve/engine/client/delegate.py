"""The members of vLLM's client protocol that a wrapper passes on unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from vllm.engine.protocol import EngineClient

__all__ = ["delegate_protocol"]


def _delegate(name: str) -> Any:
    """A member that stands for the same member of the inner client."""
    member = inspect.getattr_static(EngineClient, name)
    if isinstance(member, property):
        return property(attrgetter(f"inner.{name}"))

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    call.__name__ = name
    return call


def delegate_protocol(cls: type[EngineClient]) -> None:
    """Gives a class with an ``inner`` client the rest of the protocol, passed on to that one."""
    own: dict[str, Callable[..., Any]] = dict(vars(cls))
    for name in vars(EngineClient):
        if not name.startswith("_") and name not in own:
            setattr(cls, name, _delegate(name))
    for name in getattr(EngineClient, "__annotations__", {}):
        setattr(cls, name, property(attrgetter(f"inner.{name}")))
    cls.__abstractmethods__ = frozenset()
