"""The routes that are treated specially, and the path of a request."""

from __future__ import annotations

from collections.abc import Container

from starlette.routing import Match
from starlette.types import Scope

__all__ = [
    "BODILESS", "CHAT", "CHAT_BATCH", "COMPLETIONS", "COUNT_TOKENS", "FILES", "GUIDED_ROUTES",
    "MESSAGES", "PLAYGROUND", "PROBES", "RESPONSES", "SCORE", "is_free", "is_playground", "path_of",
    "takes_body",
]  # fmt: skip

PROBES = ("/health", "/live", "/ready", "/ping")
"""Answered without a key, under any load, and while the server drains."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
CHAT_BATCH = "/v1/chat/completions/batch"

GUIDED_ROUTES = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, CHAT_BATCH)
"""The routes that take ``decoding``."""

COUNT_TOKENS = "/v1/messages/count_tokens"
"""It takes the body of `MESSAGES`, and decodes nothing."""

FILES = "/v1/files"
"""The route that reads the multipart body of an upload by itself, piece by piece."""

PLAYGROUND = "/playground"
"""The page and, below it, its files."""

SCORE = "/v1/decoding/score"
"""The route that scores given texts."""

BODILESS = ("GET", "HEAD", "OPTIONS")
"""Methods whose bodies are never read."""

TAKES_BODY = "divserve.takes_body"
"""Key of the scope's state: what `takes_body` has found."""


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


def is_playground(scope: Scope) -> bool:
    """Whether this is a read of the playground's page or of one of its files."""
    path = path_of(scope)
    ours = path == PLAYGROUND or path.startswith(f"{PLAYGROUND}/")
    return ours and scope["method"] in BODILESS


def takes_body(scope: Scope) -> bool:
    """Whether a route takes the request, with a method that may have a body.

    The body of any other request is not read: the answer, a 404 or a 405, does not depend on it.
    """
    if scope["method"] in BODILESS:
        return False
    state = scope.setdefault("state", {})
    if TAKES_BODY not in state:
        state[TAKES_BODY] = _is_routed(scope)
    found: bool = state[TAKES_BODY]
    return found


def _is_routed(scope: Scope) -> bool:
    if "app" not in scope or (scope["method"] == "POST" and path_of(scope) in GUIDED_ROUTES):
        return True
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].router.routes)
