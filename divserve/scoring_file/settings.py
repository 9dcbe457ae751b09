"""The options of a run, and what they complete each line with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divserve.errors import StartupError

__all__ = ["FORMATS", "Settings", "fields_of"]

FORMATS = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``divserve score``; the command checks ranges.

    Raises:
        StartupError: the name of `out` has none of the endings of `FORMATS`, or is that of `file`.
    """

    file: Path
    out: Path
    url: str
    key: str | None = None
    model: str | None = None
    """None: the first that the server lists."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request for lines that lack them."""
    parallel: int = 8
    resume: bool = True

    def __post_init__(self) -> None:
        if self.out.suffix not in FORMATS:
            raise StartupError(f"--out {self.out}: the name must end in {' or '.join(FORMATS)}")
        if self.out.absolute() == self.file.absolute():
            raise StartupError(f"--out {self.out} is the input: give another name")

    def fingerprint(self, digest: str, model: str) -> dict[str, Any]:
        """What must not change between the parts of one run, as plain values."""
        return {"input": digest, "model": model, **self.fields}


def fields_of(
    scores: Sequence[str], method: str | None, guide: str | None, **others: Any
) -> dict[str, Any]:
    """The fields of a request that options stand for; options that were not given are left out.

    Args:
        scores: names, also several in one string with commas.
        method: a name, JSON, or the path of a ``.json`` file.
        guide: JSON, or the path of a ``.json`` file.
        others: fields of the request by name.

    Raises:
        StartupError: what should be JSON is not, or a file cannot be read.
    """
    names = [name.strip() for given in scores for name in given.split(",") if name.strip()]
    fields = {
        "scores": list(dict.fromkeys(names)) or None,
        "method": None if method is None else _method(method),
        "guide": None if guide is None else _json("--guide", guide),
        **others,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _method(given: str) -> Any:
    is_json = given.endswith(".json") or given.lstrip().startswith(("{", "["))
    return _json("--method", given) if is_json else given


def _json(option: str, given: str) -> Any:
    try:
        if given.endswith(".json"):
            return json.loads(Path(given).read_text(encoding="utf-8"))
        return json.loads(given)
    except OSError as error:
        raise StartupError(f"{option}: cannot read {given}: {error.strerror}") from None
    except ValueError as error:
        raise StartupError(f"{option}: {given[:80]} is not JSON: {error}") from None
