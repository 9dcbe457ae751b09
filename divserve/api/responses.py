"""/v1/responses, which vLLM answers: input that its renderer stumbles over is the client's error.

vLLM validates that route's body loosely and then takes items apart that may have other parts (a
refusal has no ``text``), which would be a 500.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from divserve.errors import InvalidRequest

__all__ = ["install"]

P = ParamSpec("P")
R = TypeVar("R")


def install(renderer: Any) -> None:
    """Puts the check around ``render_responses`` of vLLM's ``OnlineRenderer``."""
    renderer.render_responses = _readable(renderer.render_responses)


def _readable(render: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Raises `InvalidRequest` where `render` fails in a way that vLLM takes for its own fault."""

    @functools.wraps(render)
    async def rendered(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await render(*args, **kwargs)
        except (TypeError, LookupError, AttributeError, AssertionError) as error:
            raise InvalidRequest(
                f"The input cannot be read: {type(error).__name__}: {error}", param="input"
            ) from error

    return rendered
