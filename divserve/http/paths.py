"""The routes that are treated specially, and the path of a request."""

from __future__ import annotations

from collections.abc import Container

from starlette.types import Scope

__all__ = ["BODILESS", "GUIDED_ROUTES", "PROBES", "is_free", "path_of"]

PROBES = ("/health", "/live", "/ready", "/ping")
"""Answered without a key, under any load, and while the server drains."""

GUIDED_ROUTES = ("/v1/chat/completions", "/v1/completions")
"""The routes that take ``decoding``."""

BODILESS = ("GET", "HEAD", "OPTIONS")
"""Methods whose bodies are never read."""


def path_of(scope: Scope) -> str:
    """The path of the request below the server's root path, as Starlette's routes see it."""
    path: str = scope["path"]
    rest = path.removeprefix(scope.get("root_path", ""))
    # A root such as "/" or "/v" is not a root of "/v1/models".
    return rest if rest[:1] in ("", "/") else path


def is_free(scope: Scope, paths: Container[str]) -> bool:
    """Whether a request to one of these paths is cheap enough to be always accepted.

    A method with a body is not: the body would be read before the route rejects it.
    """
    return path_of(scope) in paths and scope["method"] in BODILESS
