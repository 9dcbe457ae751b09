"""The models beside the served one: which requests may use them, and ``MODEL@small``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request

from divserve import metrics
from divserve.api.guided import Guided
from divserve.decoding import SMALL_SUFFIX, Method
from divserve.errors import InvalidRequest
from divserve.http.openai import BaseModelPath

__all__ = ["aliases_of", "install", "missing", "place", "tell_health"]


def aliases_of(args: Namespace) -> list[str]:
    """The names of the small model: one per name of the served one; none without a small model."""
    if args.extras.small is None:
        return []
    return [f"{model}{SMALL_SUFFIX}" for model in args.served_model_name or [args.model]]


def install(app: FastAPI, args: Namespace) -> None:
    """Adds the small model's names to those of `app`."""
    aliases = aliases_of(args)
    models = app.state.openai_serving_models.base_model_paths
    models += [BaseModelPath(name=alias, model_path=args.extras.small) for alias in aliases]
    app.state.extras = args.extras.names
    app.state.small_aliases = frozenset(aliases)
    tell_health(app.state.engine_client)


def tell_health(client: Any) -> None:
    """Updates the gauges of live engines. `divserve.api.instrumentation` calls it for a scrape."""
    for name, alive in client.health().items():
        metrics.ENGINE_UP.labels(name).set(alive)


def missing(method: type[Method] | Method, extras: frozenset[str]) -> list[str]:
    """The flags that a method requires and the server was started without."""
    return [f"--{name}" for name in (*method.amateurs, *method.engines) if name not in extras]


def place(request: Guided, raw_request: Request) -> None:
    """Sends the request to the engine that its model names.

    Raises:
        InvalidRequest: a method requires a model that the server does not have.
    """
    state: Any = raw_request.app.state
    for method in request.methods:
        if flags := missing(method, state.extras):
            raise InvalidRequest(
                f"{method.method} needs {method.needs}: this server runs without "
                f"{' and '.join(flags)}.",
                param=f"{request.param_of(method)}.method",
                code="method_unavailable",
            )
    model: str = getattr(request, "model", None) or ""
    if model in state.small_aliases:
        request.decode_on_small()
        request.answer_as(model)
