"""What one layer leaves in the ASGI scope of a request for the layers inside it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Scope

__all__ = ["HOLD", "KEY_NAME", "OWN", "WEIGH", "hold", "is_own", "weigh"]

KEY_NAME = "divserve.client"
"""Key of the scope's state, set by authentication: the name (never the secret) of the API key."""

WEIGH = "divserve.weigh"
"""Key of the scope's state, set by admission: the function that `weigh` calls."""

HOLD = "divserve.hold"
"""Likewise, for `hold`."""

OWN = "divserve.own"
"""Key of the scope's state of a request that the server itself makes, as for a line of a batch. Its
client was authenticated when it asked for the batch, and who makes the request limits it. No client
can set it: what comes over the network has no such state."""


def is_own(scope: Scope) -> bool:
    """Whether the server itself makes this request."""
    return bool(scope.get("state", {}).get(OWN))


def weigh(scope: Scope, rows: int) -> None:
    """Tells admission how many rows of the engine's batch this request takes, if it is counted.

    Raises:
        TooManyRequests: it takes too many while the queue is full, or while others of its client
            are under way.
    """
    count: Callable[[int], None] | None = scope.get("state", {}).get(WEIGH)
    if count is not None:
        count(rows)


def hold(scope: Scope, size: int) -> None:
    """Tells admission that this request holds `size` more bytes of a body, if it is counted.

    Raises:
        TooManyRequests: all requests together hold too many.
    """
    count: Callable[[int], None] | None = scope.get("state", {}).get(HOLD)
    if count is not None:
        count(size)
