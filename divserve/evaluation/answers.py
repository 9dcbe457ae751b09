"""The answers of a run: one JSON line each, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from divserve.errors import StartupError

__all__ = ["Answer", "Answers"]


class Answer(BaseModel):
    """What came of one item in one arm."""

    model_config = ConfigDict(frozen=True)

    task: str
    arm: str
    item: str
    text: str
    right: bool | None
    """None where nothing is judged."""
    tokens: list[int]
    guided: bool
    """Whether a method was applied; False in a method's arm where it had nothing to leave out."""
    seconds: float
    first_s: float
    """Seconds to the first token."""
    rows: int = 1
    """Rows of the batch that it took, the guide's included."""
    means: dict[str, float] = {}
    """The account's means over the tokens (nats)."""
    entropy: float | None = None
    """Mean entropy of the 20 likeliest tokens, renormalised, nats; only of sampled answers."""
    likeliest: list[list[float]] = []
    """Their log-probs at each position; only of plain sampled answers."""


class Answers:
    """Answers on disk.

    Args:
        folder: where ``answers.jsonl`` and ``run.json`` are.
        settings: what must be the same when a run goes on.
        resume: False: begin anew.

    Raises:
        StartupError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "answers.jsonl"
        run = folder / "run.json"
        if resume and run.exists():
            _refuse_other(folder, json.loads(run.read_text()), settings)
        else:
            self.file.unlink(missing_ok=True)
            run.write_text(json.dumps(settings, indent=2) + "\n")
        self.of: dict[tuple[str, str, str], Answer] = {}
        for answer in self._read():
            self.of[answer.task, answer.arm, answer.item] = answer

    def add(self, answer: Answer) -> None:
        """Keeps an answer, on disk at once."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(answer.model_dump_json() + "\n")
        self.of[answer.task, answer.arm, answer.item] = answer

    def all(self, task: str, arm: str, items: Iterable[str]) -> list[Answer]:
        """The answers to these items, in their order."""
        return [self.of[task, arm, item] for item in items]

    def _read(self) -> list[Answer]:
        """What the file holds; a line that was cut off at the end is dropped from it."""
        if not self.file.exists():
            return []
        whole: list[Answer] = []
        kept = []
        for line in self.file.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                whole.append(Answer.model_validate_json(line))
            except ValidationError:
                break
            kept.append(line)
        self.file.write_text("".join(kept), encoding="utf-8")
        return whole


def _refuse_other(folder: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in sorted({*earlier, *now}):
        if earlier.get(name) != now.get(name):
            raise StartupError(
                f"{folder} was begun with {name} = {earlier.get(name)!r}, not {now.get(name)!r}: "
                "give the same options, another folder, or --no-resume"
            )
