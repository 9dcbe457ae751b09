"""The playground in front of an API without a model: real methods, scripted tokens."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from divserve import playground
from divserve.decoding import METHODS, Method

MODEL, KEY = "smol", "sk-1"
PLAIN = ["The", " Eiffel", " Tower", " is", " now", " in", " Paris", ".", "<|im_end|>"]
GUIDED = ["The", " Eiffel", " Tower", " now", " stands", " in", " Berlin", ".", "<|im_end|>"]
ODD: list[str | bytes] = [
    "<b>bold</b>",
    "\n",
    " tab\t",
    b"\xf0\x9f\xa6",
    b"\x8a",
    " <img src=x onerror=alert(1)>",
]
"""Tokens that must be shown as text; two are halves of one character."""
FIGURES = {"temperature": 0.4, "scale": 1.5, "sum_p2": 0.5, "candidates": 12.0, "overlap": 0.75}

Fault = Callable[[dict[str, Any]], Response | None]
"""Gives an error instead of an answer."""


class FakeApi:
    """What the API answers; tests change its attributes."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.key: str | None = None
        self.step_s = 0.0
        self.guided: list[str | bytes] = [*GUIDED]
        self.fault: Fault = lambda body: None
        self.cut_at: int | None = None
        """Number of tokens after which the connection is closed."""
        self.error_at: int | None = None
        """Number of tokens after which an error event ends the stream."""
        self.extras: frozenset[str] = frozenset()
        """Flags of the server beside the model."""

    def app(self) -> FastAPI:
        """The app, with the playground in it."""
        app = FastAPI(openapi_url=None)
        playground.install(app)
        app.add_api_route("/v1/models", self._models)
        app.add_api_route("/v1/decoding/methods", self._methods)
        app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])
        return app

    async def _models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse({"data": [{"id": MODEL}]})

    async def _methods(self, request: Request) -> Response:
        data = [described(name, method, self.extras) for name, method in METHODS.items()]
        return self._refused(request) or JSONResponse({"data": data})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        refused = self._refused(request) or self.fault(body)
        return refused or StreamingResponse(self._events(body), media_type="text/event-stream")

    def _refused(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return error(401, "No API key: send the header 'Authorization: Bearer KEY'.", None)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        asked = body.get("decoding")
        tokens = self.guided if asked else PLAIN
        first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        yield event({"choices": [first]})
        for n, token in enumerate(tokens):
            if n == self.error_at:
                yield event({"error": {"message": "lost", "param": None, "code": "lockstep_lost"}})
                return
            if n == self.cut_at:
                return
            await asyncio.sleep(self.step_s)
            yield event({"choices": [chunk(asked, token, n, last=n + 1 == len(tokens))]})
        yield "data: [DONE]\n\n"


def chunk(asked: dict[str, Any] | None, token: str | bytes, n: int, last: bool) -> dict[str, Any]:
    """The choice in the n-th chunk of a stream."""
    utf8 = token.encode() if isinstance(token, str) else token
    text = utf8.decode(errors="replace")
    shown = "" if text == "<|im_end|>" or isinstance(token, bytes) else text
    scored = {"token": text, "bytes": [*utf8], "logprob": -0.1, "top_logprobs": candidates(text)}
    choice: dict[str, Any] = {"index": 0, "delta": {"content": shown}, "finish_reason": None}
    choice["logprobs"] = {"content": [scored]}
    if last:
        choice["finish_reason"] = "stop"
    if asked is None:
        return choice
    scored["top_logprobs"] = []
    choice["decoding"] = {"trace": [entry(asked, text, utf8, n)]}
    if last:
        more = {"method": asked["method"], "applied_steps": n + 1, "mean": {}}
        choice["decoding"] |= more
    return choice


def entry(asked: dict[str, Any], text: str, utf8: bytes, n: int) -> dict[str, Any]:
    """An entry of the trace: every figure that the method reports rises with the tokens."""
    method = METHODS[asked["method"]]
    rising = round(0.5 * n, 3)
    figures: dict[str, Any] = {
        name: FIGURES.get(name, rising) for name in method.reports if name != "alarm"
    }
    if "alarm" in method.reports:
        figures["alarm"] = float(n == 3)
    if method.role == "switch":
        figures["model"] = "large" if n > 3 else "small"
    found = {"token": text, "token_id": n, "bytes": [*utf8], **figures}
    if isinstance(asked["trace"], dict):
        streams = ["primary", *(["guide"] if "guide" in asked else []), "guided"]
        found["top"] = {name: candidates(" Paris" if name == "guide" else text) for name in streams}
    return found


def candidates(text: str) -> list[dict[str, Any]]:
    """Two candidates, the first of them `text`."""
    shares = {text: 0.75, " Rome": 0.2}
    return [
        {"token": token, "bytes": [*token.encode()], "logprob": math.log(share)}
        for token, share in shares.items()
    ]


def described(name: str, method: type[Method], extras: frozenset[str]) -> dict[str, Any]:
    """An entry of /v1/decoding/methods; a test of the API compares it with the real one."""
    properties = method.model_json_schema()["properties"]
    own = {field: properties[field] for field in method.parameters()}
    return {
        "method": name, "title": method.title, "summary": method.summary,
        "formula": method.formula, "paper": method.paper, "url": method.url,
        "needs": method.needs,
        "available": extras >= {*method.amateurs, *method.engines},
        "guide_required": method.needs_guide(), "guided": method.guided,
        "natural_guide": method.natural_guide, "role": method.role,
        "reports": list(method.reports),
        "parameters": {"type": "object", "properties": own, "additionalProperties": False},
    }  # fmt: skip


def error(status: int, message: str, param: str | None) -> Response:
    """An error in OpenAI's shape."""
    body = {"message": message, "type": "invalid_request_error", "param": param, "code": "x"}
    return JSONResponse({"error": body}, status_code=status)


def event(data: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"
