"""What is kept of one request, and the latencies that follow from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Sample", "read_samples"]


@dataclass(frozen=True)
class Sample:
    """One request as the client saw it; times in seconds."""

    kind: str
    """``plain``, or the method (``adacad+kl_temperature``)."""
    began: float
    """By the wall clock, so that samples of several processes compare."""
    took: float
    """Until the answer, the error or the rejection was complete."""
    outcome: Literal["ok", "failed", "rejected"]
    error: str = ""
    chunks: list[tuple[float, int]] = field(default_factory=list)
    """Seconds after `began`, and tokens that came then."""
    prompt_tokens: int = 0
    retry_after: float | None = None
    """What a rejection (429) told the client to wait."""

    @property
    def tokens(self) -> int:
        """Completion tokens that came."""
        return sum(count for _, count in self.chunks)

    @property
    def ttft(self) -> float | None:
        """Time to the first token."""
        return self.chunks[0][0] if self.chunks else None

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None where there is no second one."""
        if self.tokens < 2:
            return None
        return (self.chunks[-1][0] - self.chunks[0][0]) / (self.tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Time from token to token. Tokens of one chunk share the time since the chunk before."""
        gaps = []
        last = self.ttft or 0.0
        for at, count in self.chunks[1:]:
            gaps += [(at - last) / count] * count
            last = at
        return gaps

    def meets(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether it was answered within both limits; an answer of one token has no TPOT."""
        if self.outcome != "ok" or self.ttft is None:
            return False
        return self.ttft <= ttft_s and (self.tpot is None or self.tpot <= tpot_s)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Sample:
        """The inverse of `to_json`."""
        fields = json.loads(line)
        chunks = [(at, count) for at, count in fields.pop("chunks")]
        return cls(**fields, chunks=chunks)


def read_samples(folder: Path) -> list[Sample]:
    """Every sample of a run, by when it began; each process of it wrote a file of its own."""
    return sorted(_lines(folder), key=lambda sample: sample.began)


def _lines(folder: Path) -> Iterator[Sample]:
    for path in folder.glob("samples-*.jsonl"):
        with path.open(encoding="utf-8") as file:
            # A line without its end is still being written.
            yield from (Sample.from_json(line) for line in file if line.endswith("\n"))
