"""What a seam is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CHECKED", "How", "Seam", "seams"]

How = Literal["overridden", "patched", "copied", "called", "read", "written"]

CHECKED: dict[How, str] = {
    "overridden": "signature, source",
    "patched": "signature, source",
    "copied": "signature, source",
    "called": "signature",
    "read": "declaration",
    "written": "declaration",
}
"""What ``tests/engine/test_seams.py`` compares with its record. Start-up only checks the version of
vLLM."""


@dataclass(frozen=True, slots=True)
class Seam:
    """One place where one of our files depends on a name in vLLM."""

    target: str
    """``module:name`` or ``module:Class.member`` of vLLM; a member may be an inherited one."""
    how: How
    """``overridden``: a subclass or a mixin has its own. ``patched``: replaced on an object.
    ``copied``: our code repeats what theirs does, without calling it."""
    what: str
    file: str
    """Ours, from the root of the repository."""


def seams(owner: str, file: str, how: How, /, **what: str) -> tuple[Seam, ...]:
    """Seams of one class or module of vLLM in one file.

    Args:
        owner: ``module:Class``, or a module.
        file: ours.
        how: what we do to all of them.
        what: a phrase for each name.
    """
    separator = "." if ":" in owner else ":"
    return tuple(Seam(f"{owner}{separator}{name}", how, text, file) for name, text in what.items())
