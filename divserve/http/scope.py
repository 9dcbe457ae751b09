"""What one layer leaves in the ASGI scope of a request for the layers inside it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

__all__ = ["KEY_NAME", "WEIGH", "weigh"]

KEY_NAME = "divserve.client"
"""Key of the scope's state, set by authentication: the name (never the secret) of the API key."""

WEIGH = "divserve.weigh"
"""Key of the scope's state, set by admission: the function that `weigh` calls."""


def weigh(scope: Scope, rows: int) -> None:
    """Tells admission how many rows of the engine's batch this request takes, if it is counted.

    Raises:
        TooManyRequests: it takes too many while the queue is full.
    """
    count: Callable[[int], None] | None = scope.get("state", {}).get(WEIGH)
    if count is not None:
        count(rows)
