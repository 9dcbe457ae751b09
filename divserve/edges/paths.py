"""Which routes are open, and what of a request tells them."""

from __future__ import annotations

from starlette.types import Scope

__all__ = ["PROBES", "path_of"]

PROBES = ("/health", "/live", "/ready")
"""Answered without a key, under any load, and while the server drains."""


def path_of(scope: Scope) -> str:
    """The path of the request below the server's root."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
