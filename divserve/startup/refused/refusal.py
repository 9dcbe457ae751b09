"""A mode that does not start, and the message that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from divserve.errors import StartupError

__all__ = ["Refusal", "is_recurrent", "refuse"]


@dataclass(frozen=True)
class Refusal:
    """A mode that is refused."""

    name: str
    why: str
    given: Callable[[Any], bool]
    """Whether the mode is asked for."""


def refuse(table: Sequence[Refusal], asked: Any, where: str = " by divserve") -> None:
    """Raises `StartupError` with the name and reason of each refused mode that is asked for.

    Args:
        table: the modes.
        asked: what each ``Refusal.given`` takes.
        where: with or by what they are not supported.
    """
    if found := [f"{mode.name} ({mode.why})" for mode in table if mode.given(asked)]:
        raise StartupError(f"not supported{where}: {', '.join(found)}")


def is_recurrent(model: Any) -> bool:
    """Whether rows have a recurrent state, alone or beside attention."""
    return bool(model.is_hybrid or model.is_attention_free)
