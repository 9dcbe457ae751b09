"""What is recorded about one request, and the latencies computed from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Sample", "Tail", "read_samples"]


@dataclass(frozen=True)
class Sample:
    """One request as the client saw it; times in seconds."""

    kind: str
    """``plain``, or the method (``adacad+kl_temperature``)."""
    began: float
    """Wall-clock time, so that samples of several processes can be compared."""
    took: float
    """Time until the answer, the error or the rejection was complete."""
    outcome: Literal["ok", "failed", "rejected"]
    error: str = ""
    chunks: list[tuple[float, int]] = field(default_factory=list)
    """Seconds after `began`, and the tokens that arrived then."""
    prompt_tokens: int = 0
    retry_after: float | None = None
    """How long a rejection (429) told the client to wait."""

    @property
    def tokens(self) -> int:
        """Completion tokens that arrived."""
        return sum(count for _, count in self.chunks)

    @property
    def ttft(self) -> float | None:
        """Time to the first token."""
        return self.chunks[0][0] if self.chunks else None

    @property
    def tpot(self) -> float | None:
        """Mean time per output token after the first; None if there is no second one."""
        if self.tokens < 2:
            return None
        return (self.chunks[-1][0] - self.chunks[0][0]) / (self.tokens - 1)

    @property
    def itl(self) -> list[float]:
        """Time from token to token. Tokens of one chunk share the time since the previous chunk."""
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
        """The sample as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Sample:
        """The inverse of `to_json`."""
        fields = json.loads(line)
        chunks = [(at, count) for at, count in fields.pop("chunks")]
        return cls(**fields, chunks=chunks)


class Tail:
    """Reads the samples of a test while it runs; each process of the test writes its own file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def new(self) -> list[Sample]:
        """The samples written since the last call."""
        found = []
        for path in self._folder.glob("samples-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                for line in file:
                    # A line without its end is still being written.
                    if line.endswith(b"\n"):
                        found.append(Sample.from_json(line.decode()))
                        self._read[path] = self._read.get(path, 0) + len(line)
        return found


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a test, ordered by their start."""
    return sorted(Tail(folder).new(), key=lambda sample: sample.began)
