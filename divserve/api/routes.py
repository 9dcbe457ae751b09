"""The routes: vLLM's two generation routes with our bodies, and the lists of what we add."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute

from divserve.api import extras, guide_models
from divserve.api.limits import check_request, rows_of
from divserve.api.presets import with_preset
from divserve.api.record import RECORD
from divserve.api.requests import ChatRequest, CompletionsRequest, Guided
from divserve.api.stream import PrimedResponse
from divserve.decoding import METHODS, Method
from divserve.errors import InvalidRequest, NotFound
from divserve.http.errors import ErrorBody
from divserve.http.openai import (
    answer_chat,
    answer_completion,
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from divserve.http.paths import GUIDED_ROUTES
from divserve.http.scope import weigh

__all__ = ["install"]

CHAT, COMPLETIONS = GUIDED_ROUTES

T = TypeVar("T", bound=Guided)

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    **{status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 429, 500, 503)},
}

router = APIRouter()


@router.post(
    CHAT,
    dependencies=[Depends(validate_json_request)],
    responses=RESPONSES,
    response_model=None,
)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """Chat completion, with an optional decoding method."""
    with _preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        return _primed(await answer_chat(request, raw_request))


@router.post(
    COMPLETIONS,
    dependencies=[Depends(validate_json_request)],
    responses=RESPONSES,
    response_model=None,
)
@with_cancellation
@load_aware_call
async def create_completion(request: CompletionsRequest, raw_request: Request) -> Response:
    """Text completion, with an optional decoding method."""
    with _preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        return _primed(await answer_completion(request, raw_request))


@router.get("/v1/decoding/methods")
async def list_methods(raw_request: Request) -> dict[str, Any]:
    """The decoding methods: what they do, need and report, and their parameters."""
    there = raw_request.app.state.extras
    return {
        "object": "list",
        "data": [_describe(name, method, there) for name, method in METHODS.items()],
    }


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, raw_request: Request) -> JSONResponse:
    """One entry of /v1/models: the served model, an adapter, or an alias of a preset."""
    listed = await raw_request.app.state.openai_serving_models.show_available_models()
    for card in listed.data:
        if card.id == model:
            return JSONResponse(card.model_dump())
    raise NotFound(f"The model {model!r} does not exist; /v1/models lists all.", param="model")


@router.get("/health")
@router.head("/health", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
async def health(raw_request: Request) -> JSONResponse:
    """200 while the served model's engine lives; the body tells of the small one's too."""
    engines: dict[str, bool] = raw_request.app.state.engine_client.health()
    words = {True: "ok", False: "dead"}
    status = "ok" if all(engines.values()) else "degraded" if engines["large"] else "dead"
    body = {"status": status, "engines": {name: words[alive] for name, alive in engines.items()}}
    return JSONResponse(body, status_code=200 if engines["large"] else 503)


@router.get("/v1/decoding/presets")
async def list_presets(raw_request: Request) -> dict[str, Any]:
    """The presets by name: what the model alias ``MODEL@NAME`` stands for."""
    presets = raw_request.app.state.presets
    data = [{"preset": name, "decoding": value} for name, value in presets.items()]
    return {"object": "list", "data": data}


def install(app: FastAPI) -> None:
    """Puts the routes into `app`, in place of vLLM's at the same paths."""
    ours = {(route.path, verb) for route in router.routes for verb in route.methods}  # type: ignore[attr-defined]
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (
            isinstance(route, APIRoute)
            and any((route.path, verb) in ours for verb in route.methods)
        )
    ]
    app.include_router(router)
    app.openapi_schema = None


async def _admitted(request: T, raw_request: Request) -> T:
    """The request as it will be decoded, once it is accepted.

    Raises:
        InvalidRequest: it asks for too much, or for something the server does not have.
    """
    state = raw_request.app.state
    request = await with_preset(request, raw_request)
    request.keep(raw_request.scope[RECORD], state.log_prompts)
    check_request(request, state.edges, state.engine_client.model_config.max_model_len)
    extras.place(request, raw_request)
    guide_models.resolve(request, raw_request)
    weigh(raw_request.scope, rows_of(request))
    return request


@contextmanager
def _preset_named(request: Guided, raw_request: Request) -> Iterator[None]:
    """Makes an error in the ``decoding`` of a preset say that the client did not send it."""
    model = getattr(request, "model", None)
    given = "decoding" in request.model_fields_set
    try:
        yield
    except InvalidRequest as error:
        of_preset = not given and model in raw_request.app.state.preset_of_alias
        if of_preset and (error.param or "").startswith("decoding"):
            told = f"The preset of {model}: "
            error.message = told + error.message.removeprefix(told)
        raise


def _primed(response: Response) -> Response:
    return PrimedResponse.of(response) if isinstance(response, StreamingResponse) else response


def _describe(name: str, method: type[Method], there: frozenset[str]) -> dict[str, Any]:
    schema = method.model_json_schema()
    own = {field: schema["properties"][field] for field in method.parameters()}
    return {
        "method": name,
        "title": method.title,
        "summary": method.summary,
        "formula": method.formula,
        "paper": method.paper,
        "url": method.url,
        "needs": method.needs,
        "available": not extras.missing(method, there),
        "guide_required": method.needs_guide(),
        "guided": method.guided,
        "natural_guide": method.natural_guide,
        "role": method.role,
        "reports": list(method.reports),
        "parameters": {"type": "object", "properties": own, "additionalProperties": False},
    }
