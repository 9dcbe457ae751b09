"""Presets: named values of the ``decoding`` field, for apps that cannot send the field.

Each is served as a model alias ``MODEL@NAME``. In the shipped presets the guide lacks the documents
of the chat; a user's preset replaces a shipped one of the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from divserve.decoding import TAGS, Decoding
from divserve.errors import StartupError

__all__ = ["SHIPPED", "load"]

WITHOUT_DOCUMENTS = {"guide": {"documents": True}}

SHIPPED: Mapping[str, Any] = {
    "faithful": [
        {"method": "adacad", **WITHOUT_DOCUMENTS},
        {"method": "kl_temperature", **WITHOUT_DOCUMENTS},
    ],
    "diverse": {"method": "kl_temperature", "sigma": 0.5, **WITHOUT_DOCUMENTS},
}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ADAPTER: TypeAdapter[Any] = TypeAdapter(Decoding)


def load(files: Sequence[str], section: Any = None) -> dict[str, Any]:
    """The presets of a server by name, checked.

    Args:
        files: ``NAME=FILE.json`` each; the file holds a value of ``decoding``.
        section: ``presets`` in the settings file: names and their values.

    Raises:
        StartupError: a name or a value is wrong, or a file cannot be read.
    """
    if section is not None and not isinstance(section, Mapping):
        raise StartupError("'presets' in the settings file maps names to values of 'decoding'")
    given = [(str(name), value) for name, value in (section or {}).items()]
    given += [_read(item) for item in files]
    names = [name for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise StartupError(f"the preset '{twice}' is given twice")
    for name, value in given:
        _check(name, value)
    return {**SHIPPED, **dict(given)}


def _read(item: str) -> tuple[str, Any]:
    name, equals, path = item.partition("=")
    if not equals or not path:
        raise StartupError(f"--preset takes NAME=FILE.json, not '{item}'")
    try:
        return name, json.loads(Path(path).read_text())
    except OSError as error:
        raise StartupError(f"preset '{name}': cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise StartupError(f"preset '{name}': {path} is not valid JSON: {error}") from None


def _check(name: str, value: Any) -> None:
    if not NAME.fullmatch(name):
        raise StartupError(f"preset '{name}': a name is letters, digits, '.', '_' and '-'")
    try:
        ADAPTER.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in TAGS)
        raise StartupError(f"preset '{name}': {where}: {first['msg']}") from None
