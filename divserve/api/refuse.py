"""Rejects ``decoding`` where it would be ignored.

vLLM's other routes (render, invocations, generate …) allow unknown fields and would decode plainly.
There a JSON body with a non-null ``decoding`` at its top level, or with a preset's alias as its
``model``, gets a 400 (the tokenizer routes, which decode nothing, accept an alias), and so does an
alias in SageMaker's header, which replaces the ``model``. Requests to the guided routes are not
examined, nor those that count the tokens of a message; other bodies reach their route unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from divserve.errors import InvalidRequest
from divserve.http.asgi import is_json, read_body, replay
from divserve.http.errors import error_response
from divserve.http.paths import COUNT_TOKENS, GUIDED_ROUTES, path_of

__all__ = ["RefuseDecoding"]

PLAIN_ROUTES = ("/tokenize", "/detokenize")

MODEL_HEADER = "x-amzn-sagemaker-adapter-identifier"

# The key may be written with escapes or in UTF-16, which json.loads both reads.
MAY_HAVE_KEY = re.compile(rb"decoding|@|\\u|\x00")


class RefuseDecoding:
    """Pure ASGI middleware, to be placed inside authentication.

    Args:
        app: the application.
        aliases: the model names that select a preset.
    """

    def __init__(self, app: ASGIApp, aliases: Container[str] = ()) -> None:
        self.app = app
        self.aliases = aliases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not _to_check(scope):
            await self.app(scope, receive, send)
            return
        messages = await read_body(receive) or []
        body = b"".join(message.get("body", b"") for message in messages)
        aliases = () if scope["path"].endswith(PLAIN_ROUTES) else self.aliases
        named = Headers(scope=scope).get(MODEL_HEADER)
        if named in aliases or _asks_for_decoding(body, aliases):
            await error_response(_refusal(scope["path"]))(scope, receive, send)
            return
        await self.app(scope, replay(messages, receive), send)


def _to_check(scope: Scope) -> bool:
    """Whether the request goes to a route that is not guided, with a body that may be JSON."""
    path = path_of(scope).rstrip("/")
    return path not in (*GUIDED_ROUTES, COUNT_TOKENS) and is_json(scope)


def _asks_for_decoding(body: bytes, aliases: Container[str]) -> bool:
    if not MAY_HAVE_KEY.search(body):
        return False
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    model = value.get("model")
    return value.get("decoding") is not None or (isinstance(model, str) and model in aliases)


def _refusal(path: str) -> InvalidRequest:
    *some, last = GUIDED_ROUTES
    routes = f"{', '.join(some)} or {last}"
    return InvalidRequest(
        f"{path} does not take 'decoding', nor the model alias of a preset or of the small model "
        f"(MODEL@…): send it to {routes}; "
        "or leave it out.",
        param="decoding",
    )
