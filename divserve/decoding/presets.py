"""Presets: named values of the ``decoding`` field, for apps that cannot send the field.

Each is served as a model alias ``MODEL@NAME``, and a request may name it in ``decoding``. In the
shipped presets the guide lacks the document of the chat; a user's preset replaces a shipped one of
the same name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from divserve.decoding import METHODS, TAGS, Decoding, PresetRef
from divserve.errors import StartupError

__all__ = ["DEFAULT", "SHIPPED", "expanded", "load", "validated"]

WITHOUT_DOCUMENT = {
    "guide": {
        "first_of": [
            {"between": [["<document>", "</document>"]]},
            {"documents": True},
            # Last: a chat that marks its documents may have instructions in the system message.
            {"role": "system"},
        ]
    }
}

SHIPPED: Mapping[str, Any] = {
    "faithful": [
        {"method": "adacad", **WITHOUT_DOCUMENT},
        {"method": "kl_temperature", **WITHOUT_DOCUMENT},
    ],
    "diverse": {"method": "kl_temperature", "sigma": 0.5, **WITHOUT_DOCUMENT},
}
DEFAULT = "faithful"
"""The preset of a ``context_weight`` without one."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ADAPTER: TypeAdapter[Any] = TypeAdapter(Decoding)


def validated(value: Any) -> Any:
    """A preset's value as what ``decoding`` holds."""
    return ADAPTER.validate_python(value)


def expanded(ref: PresetRef, presets: Mapping[str, Any]) -> Any:
    """What a `PresetRef` stands for, as a value of ``decoding``.

    Args:
        ref: its own fields replace those of the preset.
        presets: by name.

    Raises:
        KeyError: there is no such preset.
    """
    value = presets[ref.preset or DEFAULT]
    methods = [dict(one) for one in (value if isinstance(value, list) else [value])]
    if ref.context_weight is not None:
        methods = _weighted(methods, ref.context_weight)
    if ref.guide is not None:
        guide = ref.guide.model_dump(exclude_defaults=True)
        takes = [METHODS[one["method"]].guided for one in methods]
        # If no method takes a guide, all get it: validation refuses it by name.
        methods = [
            {**one, "guide": guide} if takes[place] or not any(takes) else one
            for place, one in enumerate(methods)
        ]
    if "trace" in ref.model_fields_set:
        for one in methods:
            one.pop("trace", None)
        if ref.trace is not None:
            methods[0]["trace"] = ref.trace.model_dump()
    return methods


def _weighted(methods: list[dict[str, Any]], weight: float | str) -> list[dict[str, Any]]:
    """The methods with a contrast of this weight in place of their own."""
    contrasts = [one for one in methods if METHODS[one["method"]].role == "contrast"]
    guides = (one["guide"] for one in (*contrasts, *methods) if "guide" in one)
    dial: dict[str, Any] = (
        {"method": "adacad"} if weight == "auto" else {"method": "cad", "alpha": weight}
    )
    if (guide := next(guides, None)) is not None:
        dial["guide"] = guide
    traced = [{"trace": one["trace"]} for one in contrasts if "trace" in one]
    return [{**dial, **(traced[0] if traced else {})}, *(m for m in methods if m not in contrasts)]


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
    return {**SHIPPED, **{name: _checked(name, value) for name, value in given}}


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


def _checked(name: str, value: Any) -> Any:
    """The value, in which a reference to a shipped preset is written out.

    Raises:
        StartupError: the name or the value is wrong.
    """
    if not NAME.fullmatch(name):
        raise StartupError(f"preset '{name}': a name is letters, digits, '.', '_' and '-'")
    try:
        checked = validated(value)
        if not isinstance(checked, PresetRef):
            return value
        if (checked.preset or DEFAULT) not in SHIPPED:
            shipped = " and ".join(f"'{one}'" for one in SHIPPED)
            raise StartupError(f"preset '{name}': 'preset' names a built-in one: {shipped}")
        written = expanded(checked, SHIPPED)
        validated(written)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in TAGS)
        raise StartupError(f"preset '{name}': {where}: {first['msg']}") from None
    return written
