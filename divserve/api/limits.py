"""How much the body of a guided route may ask for; each rejection says what to change."""

from __future__ import annotations

from typing import Any

from divserve.api.requests import Guided
from divserve.errors import InvalidRequest
from divserve.http.fields import TEXTS, FieldLimits, check_fields, prompts_in

__all__ = ["check_request", "rows_of"]


def check_request(request: Guided, limits: FieldLimits, context: int) -> None:
    """Raises `InvalidRequest` for a body of a guided route beyond its limits.

    Args:
        request: the body.
        limits: the maximum of each.
        context: tokens of the model's context: the limit of an answer without ``max_tokens``.
    """
    check_fields(lambda field: getattr(request, field, None), limits)
    traced = next((method for method in request.methods if method.trace), None)
    if traced is None:
        return
    fields = ("max_completion_tokens", "max_tokens")
    longest = next((n for f in fields if (n := getattr(request, f, None)) is not None), context)
    if longest > limits.max_trace_tokens:
        raise InvalidRequest(
            f"A trace of up to {longest} tokens is too long: set max_tokens to at most "
            f"{limits.max_trace_tokens}, leave the trace out, or start the server with a larger "
            "--max-trace-tokens.",
            param=f"{request.param_of(traced)}.trace",
        )


def rows_of(request: Guided) -> int:
    """Rows of the engine's batch that a request takes: for each choice, one and its guides."""
    guides: list[Any] = []
    for method in request.methods:
        if method.guided and method.guide not in guides:
            guides.append(method.guide)
    prompts = max(sum(prompts_in(getattr(request, field, None)) for field in TEXTS), 1)
    return (getattr(request, "n", None) or 1) * prompts * (1 + len(guides))
