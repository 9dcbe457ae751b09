"""What one layer leaves in the ASGI scope of a request for the layers inside of it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

__all__ = ["KEY_NAME", "WEIGH", "weigh"]

KEY_NAME = "divserve.client"
"""In the scope's state, from authentication: the name (never the secret) of the API key."""

WEIGH = "divserve.weigh"
"""In the scope's state, from admission: what `weigh` calls."""


def weigh(scope: Scope, rows: int) -> None:
    """Tells admission, if it counts this request, how many rows of the engine's batch it takes.

    Raises:
        TooManyRequests: too many, while the queue is full.
    """
    count: Callable[[int], None] | None = scope.get("state", {}).get(WEIGH)
    if count is not None:
        count(rows)
