"""The options of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``divserve eval``, in the order of its help; the command checks ranges."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    url: str
    out: Path
    model: str | None = None
    """None: the first that the server lists."""
    key: str | None = None
    limit: int | None = None
    """Items of each task, at most."""
    max_tokens: int | None = None
    """Tokens of an answer, at most; None: as each item says."""
    sampled: int | None = 100
    """Items of each task that are also sampled; 0 is none."""
    temperature: float = 1.0
    """Of the sampled answers."""
    parallel: int = 4
    seed: int = 0
    resume: bool = True

    def fingerprint(self, model: str) -> dict[str, Any]:
        """What must not change between the parts of one run, as plain values."""
        return {
            "tasks": list(self.tasks),
            "methods": list(self.methods),
            "model": model,
            "limit": self.limit,
            "max_tokens": self.max_tokens,
            "sampled": self.sampled,
            "temperature": self.temperature,
            "parallel": self.parallel,
            "seed": self.seed,
        }
