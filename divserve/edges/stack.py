"""Puts the edges around an application."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fastapi import FastAPI
from starlette.middleware import Middleware

from divserve.edges import probes
from divserve.edges.admission import Admission
from divserve.edges.auth import RequireKey
from divserve.edges.body import GuardBody
from divserve.edges.flags import EdgeSettings
from divserve.edges.keys import KeyRing
from divserve.edges.request_id import RequestIds
from divserve.edges.shape import ShapeErrors
from divserve.edges.traffic import Traffic

__all__ = ["install"]


def install(app: FastAPI, settings: EdgeSettings, keys: Iterable[str], rows: int) -> None:
    """Puts the edges around `app` and its own middleware.

    Layers that reject requests are inside the middleware that `app` already has, so a browser may
    read a rejection (CORS) and the HTTP metrics count it.

    Args:
        app: its middleware stack must not have been built.
        settings: the flags.
        keys: API keys, in addition to those of a file.
        rows: how many the engine runs at the same time, all of its ranks together.

    Raises:
        StartupError: the key file holds no key.
    """
    ring = KeyRing(keys, settings.api_key_file)
    traffic = Traffic(
        most_rows=rows + settings.max_queue,
        most_of_client=settings.max_concurrent_per_key or math.inf,
        # A body of the largest size fits when there is no other.
        most_bytes=max(settings.max_bytes_in_flight, settings.max_body_bytes),
    )
    app.state.edges, app.state.keys, app.state.traffic = settings, ring, traffic
    app.include_router(probes.router)
    outer = [Middleware(RequestIds), Middleware(ShapeErrors)]
    inner = [
        Middleware(
            RequireKey,
            keys=ring,
            metrics=settings.metrics_without_key,
            playground=not settings.no_playground,
        ),
        Middleware(Admission, traffic=traffic, settings=settings),
        Middleware(GuardBody, settings=settings),
    ]
    app.user_middleware[:] = [*outer, *app.user_middleware, *inner]
