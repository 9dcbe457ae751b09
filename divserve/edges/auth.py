"""Every route requires a key, except reads of the paths named here and the playground's files."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from divserve.edges.keys import KeyRing
from divserve.errors import Unauthorized
from divserve.http.errors import error_response
from divserve.http.paths import PROBES, is_free, is_playground
from divserve.http.scope import KEY_NAME, is_own

__all__ = ["RequireKey", "client_of"]


def client_of(scope: Scope) -> str:
    """The client that a request is counted for: the name of its key, or its address."""
    if (name := scope.get("state", {}).get(KEY_NAME)) is not None:
        return f"key {name}"
    return f"address {network_of((scope.get('client') or ('unknown',))[0])}"


def network_of(host: str) -> str:
    """What an address is counted as: IPv6 by its /64, the least that one subscriber is given."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


class RequireKey:
    """Pure ASGI middleware; without any key the server is open.

    Args:
        app: the application.
        keys: the keys that are accepted.
        metrics: whether ``/metrics`` is served without a key.
        playground: whether the playground's files are.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, metrics: bool = False, playground: bool = False
    ) -> None:
        self.app = app
        self.keys = keys
        self.open = {*PROBES, *(["/metrics"] if metrics else [])}
        self.playground = playground

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.keys or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "http" and self._is_open(scope):
            await self.app(scope, receive, send)
            return
        given = _given(scope)
        name = self.keys.name_of(given[0]) if len(given) == 1 else None
        if name is not None:
            scope.setdefault("state", {})[KEY_NAME] = name
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before the connection is accepted, the server turns this into a 403.
            await send({"type": "websocket.close", "code": 1008})
        else:
            await error_response(_refusal(given))(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        free = is_own(scope) or is_free(scope, self.open)
        return free or (self.playground and is_playground(scope))


def _given(scope: Scope) -> list[bytes]:
    """The keys of a request: of ``Authorization`` and of ``x-api-key`` (Anthropic's).

    The same key in both counts once: clients and proxies that are not sure send both.
    """
    headers = Headers(scope=scope)
    words = [value.partition(" ") for value in headers.getlist("authorization")]
    bearers = [key.strip() if scheme.lower() == "bearer" else "" for scheme, _, key in words]
    others = [key.strip() for key in headers.getlist("x-api-key")]
    keys = bearers if bearers == others else bearers + others
    return [key.encode("latin-1") for key in keys]


def _refusal(given: list[bytes]) -> Unauthorized:
    if len(given) > 1:
        return Unauthorized(f"{len(given)} headers with an API key: send one.")
    if not given or not given[0]:
        return Unauthorized(
            "No API key: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        )
    return Unauthorized("The API key is wrong, or has been revoked.")
