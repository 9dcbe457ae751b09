"""The answers of a run: one JSON line each, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from divserve.errors import StartupError
from divserve.evaluation.origin import Origin

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
    """The account's means over the tokens (divergences and entropies in nats)."""
    applied: int | None = None
    """Tokens that the account counts as decoded with the method; None of plain decoding."""
    kls: list[float] = []
    """KL(primary‖guide) of each token, nats; of greedy answers, if the method reports it."""
    swapped: int | None = None
    """Tokens that are not the primary's likeliest after the same text; only of greedy answers."""
    entropy: float | None = None
    """Mean entropy of the 20 likeliest tokens, renormalised, nats; only of sampled answers."""
    likeliest: list[list[float]] = []
    """Their log-probs at each position; only of plain sampled answers."""


class Answers:
    """Answers on disk.

    Args:
        folder: where ``answers.jsonl``, ``run.json`` and ``origins.jsonl`` are.
        settings: what must be the same when a run goes on.
        origin: of the answers that are added.
        resume: False: begin anew.

    Raises:
        StartupError: the folder holds a run with other settings.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], origin: Origin, resume: bool = True
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "answers.jsonl"
        self._origins, self._origin = folder / "origins.jsonl", origin
        run = folder / "run.json"
        if resume and run.exists():
            _refuse_other(folder, json.loads(run.read_text()), settings)
        else:
            for file in (self.file, self._origins):
                file.unlink(missing_ok=True)
            run.write_text(json.dumps(settings, indent=2) + "\n")
        self.of: dict[tuple[str, str, str], Answer] = {}
        for answer in self._read():
            self.of[answer.task, answer.arm, answer.item] = answer

    def add(self, answer: Answer) -> None:
        """Keeps an answer, on disk at once."""
        if self._origin not in self.origins():
            with self._origins.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self._origin)) + "\n")
        with self.file.open("a", encoding="utf-8") as file:
            file.write(answer.model_dump_json() + "\n")
        self.of[answer.task, answer.arm, answer.item] = answer

    def all(self, task: str, arm: str, items: Iterable[str]) -> list[Answer]:
        """The answers to these items, in their order."""
        return [self.of[task, arm, item] for item in items]

    def origins(self) -> list[Origin]:
        """Where the answers come from; more than one if the run went on elsewhere."""
        if not self._origins.exists():
            return []
        lines = self._origins.read_text(encoding="utf-8").splitlines()
        return [Origin(**json.loads(line)) for line in lines]

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
