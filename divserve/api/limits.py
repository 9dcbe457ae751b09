"""How much the body of a guided route may ask for; each rejection says what to change."""

from __future__ import annotations

from typing import Any, cast

from divserve.api.guided import Guided
from divserve.decoding import Stack
from divserve.errors import InvalidRequest
from divserve.http.fields import FieldLimits, check_rows

__all__ = ["check_request", "rows_of"]


def check_request(request: Guided, limits: FieldLimits, context: int) -> None:
    """Raises `InvalidRequest` for a body of a guided route that asks for too many rows or entries.

    Its fields were checked before it was validated (`divserve.edges.body`).

    Args:
        request: the body.
        limits: the maximum of each.
        context: tokens of the model's context: the limit of an answer without ``max_tokens``.
    """
    check_rows(rows_of(request), lambda field: getattr(request, field, None), limits)
    traced = next((method for method in request.methods if method.trace), None)
    if traced is None:
        return
    longest = context if request.longest is None else request.longest
    choices = _choices(request)
    if longest * choices > limits.max_trace_tokens:
        shared = f", over {choices} choices," if choices > 1 else ""
        raise InvalidRequest(
            f"A trace of up to {longest * choices} tokens{shared} is too long: set "
            f"{request.length_fields[-1]} to at most {limits.max_trace_tokens // choices}, leave "
            "the trace out, or start the server with a larger --max-trace-tokens.",
            param=f"{request.param_of(traced)}.trace",
        )
    _check_candidates(request, limits, longest * choices)


def _check_candidates(request: Guided, limits: FieldLimits, tokens: int) -> None:
    """Raises `InvalidRequest` for a trace with too many of the streams' likeliest tokens."""
    stack = cast(Stack, request.stack)
    if not stack.top:
        return
    # The primary's and the guided distribution, and those between them.
    streams = 2 + _guides(request) + len(stack.amateurs)
    if (asked := tokens * stack.top * streams) <= limits.max_trace_candidates:
        return
    most = limits.max_trace_candidates // (stack.top * streams)
    asks = next(m for m in request.methods if m.trace is not None and m.trace.top == stack.top)
    raise InvalidRequest(
        f"A trace with the {stack.top} likeliest tokens of {streams} streams, for up to {tokens} "
        f"tokens of all choices, has up to {asked} candidates; the most is "
        f"{limits.max_trace_candidates}. Lower 'top', limit all choices together to {most} tokens, "
        "or start the server with a larger --max-trace-candidates.",
        param=f"{request.param_of(asks)}.trace.top",
    )


def rows_of(request: Guided) -> int:
    """Rows of the engine's batch that a request takes: for each choice, one and its guides."""
    return _choices(request) * (1 + _guides(request))


def _guides(request: Guided) -> int:
    """Different guides of a choice."""
    guides: list[Any] = []
    for method in request.methods:
        asked = (method.guide, method.distorts)
        if method.guided and asked not in guides:
            guides.append(asked)
    return len(guides)


def _choices(request: Guided) -> int:
    """Answers of all prompts together."""
    return (getattr(request, "n", None) or 1) * request.prompts
