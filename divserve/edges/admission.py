"""Admission: rejects requests while the server drains and when it is at its limits.

All of this happens before any of the body is read, so a rejection costs almost nothing. A request
whose body then turns out to need many rows while the queue or its client's share is full is
rejected by `Traffic.weigh`, and one whose body does not fit beside the others by `Traffic.hold`.
"""

from __future__ import annotations

from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from divserve.edges.auth import client_of
from divserve.edges.flags import EdgeSettings
from divserve.edges.rates import Allowance, Rates
from divserve.edges.traffic import Traffic, client_full, queue_full
from divserve.errors import ApiError, TooManyRequests, Unavailable
from divserve.http.errors import error_response
from divserve.http.paths import PROBES, is_free, takes_body
from divserve.http.scope import HOLD, WEIGH, is_own

__all__ = ["Admission"]

FREE = (*PROBES, "/metrics")
"""Always accepted, and not counted."""
RESTART_AFTER_S = 5.0
"""Seconds until another server may have replaced one that drains."""


class Admission:
    """Pure ASGI middleware. Requests whose body is read are limited; the drain waits for all.

    Requests that the server itself makes are limited by who makes them; they only end the drain.

    Args:
        app: the application.
        traffic: where requests are counted.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic, settings: EdgeSettings) -> None:
        self.app = app
        self.traffic = traffic
        self.rates = Rates(settings.rate_limit) if settings.rate_limit else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and self.traffic.draining:
            await send({"type": "websocket.close", "code": 1012})
            return
        if scope["type"] != "http" or is_free(scope, FREE):
            await self.app(scope, receive, send)
            return
        own = is_own(scope)
        client, works = client_of(scope), not own and takes_body(scope)
        refusal = self._refusal(client, works)
        if refusal is None and works and self.rates is not None:
            allowance = self.rates.ask(client)
            send = _telling(allowance, send)
            if not allowance.granted:
                refusal = TooManyRequests(
                    f"Too many requests: the limit is {allowance.rate}. Wait "
                    f"{max(allowance.reset_s, 0.1):.1f} s.",
                    retry_after_s=max(allowance.reset_s, 0.001),
                )
        if refusal is not None:
            # The connection stays open: closing it with an unread body would lose the answer.
            await error_response(refusal)(scope, receive, send)
            return
        ticket = self.traffic.enter(client if works else None, rows=int(works))
        if not own:
            state = scope.setdefault("state", {})
            state[WEIGH] = partial(self.traffic.weigh, ticket)
            state[HOLD] = partial(self.traffic.hold, ticket)
        try:
            await self.app(scope, receive, send)
        finally:
            self.traffic.leave(ticket)

    def _refusal(self, client: str, works: bool) -> ApiError | None:
        if self.traffic.draining:
            return Unavailable(
                "The server is shutting down and takes no new requests.",
                code="shutting_down",
                retry_after_s=RESTART_AFTER_S,
            )
        if not works:
            return None
        if self.traffic.rows >= self.traffic.most_rows:
            return queue_full()
        if self.traffic.of_client[client] >= self.traffic.most_of_client:
            return client_full(self.traffic.most_of_client)
        return None


def _telling(allowance: Allowance, send: Send) -> Send:
    """Adds the client's allowance to the headers of its answer."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *allowance.headers()]
            message = {**message, "headers": headers}
        await send(message)

    return told
