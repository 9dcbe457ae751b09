"""What a task is made of: items, each a request and how its answer is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from divserve.errors import StartupError

__all__ = ["Item", "Task", "load"]

Judge = Literal["contains", "number", "exact", "python", "none"]


class Item(BaseModel):
    """One question of a task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    group: str = ""
    """Part of the task whose accuracy is also reported by itself."""
    messages: list[dict[str, Any]] = Field(min_length=1)
    document: str | None = None
    """The text, verbatim in the messages, that the guide lacks."""
    judge: Judge = "contains"
    answers: list[str] = []
    """Right ones."""
    others: list[str] = []
    """Wrong ones that are told apart: an answer that names both kinds is judged by the first."""
    tests: str = ""
    """For ``python``: assertions on what the answer defines."""
    max_tokens: int = Field(default=32, ge=1, le=4096)

    @model_validator(mode="after")
    def _can_be_judged(self) -> Item:
        if self.judge in ("contains", "number", "exact") and not self.answers:
            raise ValueError(f"an item judged by '{self.judge}' needs 'answers'")
        if self.judge == "python" and not self.tests:
            raise ValueError("an item judged by 'python' needs 'tests'")
        texts = [message.get("content") for message in self.messages]
        if self.document is not None and not any(self.document in str(t) for t in texts):
            raise ValueError("'document' does not stand in the messages")
        return self


class Task(BaseModel):
    """A named list of items."""

    name: str
    items: list[Item] = Field(min_length=1)
    greedy: bool = True
    """False: its items differ by their seeds only, so greedy answers would be the same."""

    @model_validator(mode="after")
    def _ids_differ(self) -> Task:
        ids = [item.id for item in self.items]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"two items have the id '{twice}'")
        return self

    def spread(self, limit: int | None) -> Task:
        """At most `limit` items: of each group its share, at equal distances, and at least one."""
        total = len(self.items)
        if limit is None or limit >= total:
            return self
        kept: set[str] = set()
        for name in {item.group for item in self.items}:
            ids = [item.id for item in self.items if item.group == name]
            share = max(1, limit * len(ids) // total)
            kept |= {ids[place * len(ids) // share] for place in range(share)}
        return self.model_copy(update={"items": [one for one in self.items if one.id in kept]})

    def capped(self, tokens: int | None) -> Task:
        """The same items with answers of at most `tokens` tokens."""
        if tokens is None:
            return self
        items = [
            one.model_copy(update={"max_tokens": min(tokens, one.max_tokens)}) for one in self.items
        ]
        return self.model_copy(update={"items": items})


def load(path: Path) -> Task:
    """The task of a JSONL file, an item a line.

    Raises:
        StartupError: the file cannot be read, or a line is not an item.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read the task {path}: {error}") from None
    try:
        return Task(name=path.stem, items=list(_items(path, lines)))
    except ValidationError as error:
        raise StartupError(f"{path}: {error.errors()[0]['msg']}") from None


def _items(path: Path, lines: Sequence[str]) -> Iterator[Item]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Item.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "item"
            raise StartupError(f"{path}, line {number}: {where}: {first['msg']}") from None
        except ValueError as error:
            raise StartupError(f"{path}, line {number} is not JSON: {error}") from None
