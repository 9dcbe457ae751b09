"""What all batches of a process use."""

from __future__ import annotations

from dataclasses import dataclass

from divserve.batches.call import Caller
from divserve.batches.files import FileStore
from divserve.batches.room import Room
from divserve.batches.store import BatchStore

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """What all batches of a process use."""

    store: BatchStore
    files: FileStore
    caller: Caller
    room: Room
    longest: int
    """Most bytes of a line."""
