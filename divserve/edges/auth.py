"""Every route requires a key, except reads of the paths named here."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from divserve.edges.keys import KeyRing
from divserve.errors import Unauthorized
from divserve.http.errors import error_response
from divserve.http.paths import PROBES, is_free
from divserve.http.scope import KEY_NAME

__all__ = ["RequireKey", "client_of"]


def client_of(scope: Scope) -> str:
    """The client that a request is counted for: the name of its key, or its address."""
    if (name := scope.get("state", {}).get(KEY_NAME)) is not None:
        return f"key {name}"
    return f"address {(scope.get('client') or ('unknown',))[0]}"


class RequireKey:
    """Pure ASGI middleware; without any key the server is open.

    Args:
        app: the application.
        keys: the keys that are accepted.
        metrics: whether ``/metrics`` is served without a key.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics: bool = False) -> None:
        self.app = app
        self.keys = keys
        self.open = {*PROBES, *(["/metrics"] if metrics else [])}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.keys or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "http" and is_free(scope, self.open):
            await self.app(scope, receive, send)
            return
        token = _bearer(scope)
        name = self.keys.name_of(token) if token else None
        if name is not None:
            scope.setdefault("state", {})[KEY_NAME] = name
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before the connection is accepted, the server turns this into a 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await error_response(_refusal(token))(scope, receive, send)


def _bearer(scope: Scope) -> bytes | None:
    """The key of the request, as bytes; None if there is none, or more than one."""
    given = Headers(scope=scope).getlist("authorization")
    if len(given) != 1:
        return None
    scheme, _, token = given[0].partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def _refusal(token: bytes | None) -> Unauthorized:
    if not token:
        return Unauthorized("No API key: send the header 'Authorization: Bearer KEY'.")
    return Unauthorized("The API key is wrong, or has been revoked.")
