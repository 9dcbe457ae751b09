"""The routes: vLLM's generation routes with our bodies, and the lists of what we add."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute

from divserve.api import extras, guide_models, score
from divserve.api.anthropic import answer_count, answer_message
from divserve.api.bodies import (
    BatchRequest,
    CountRequest,
    GuidedResponsesRequest,
    MessagesRequest,
)
from divserve.api.guided import Guided
from divserve.api.limits import check_request, rows_of
from divserve.api.presets import preset_named, with_preset
from divserve.api.record import RECORD
from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.api.stream import PrimedResponse
from divserve.decoding import METHODS, Method, PresetRef
from divserve.errors import NotFound
from divserve.http.errors import ErrorBody
from divserve.http.openai import (
    answer_batch,
    answer_chat,
    answer_completion,
    answer_responses,
    load_aware_call,
    validate_json_request,
    with_cancellation,
)
from divserve.http.paths import (
    CHAT,
    CHAT_BATCH,
    COMPLETIONS,
    COUNT_TOKENS,
    MESSAGES,
    RESPONSES,
)
from divserve.http.scope import weigh

__all__ = ["install"]

T = TypeVar("T", bound=Guided)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 429, 500, 503)
}
OR_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}, **ERRORS}

router = APIRouter()


def generates(path: str, responses: dict[int | str, dict[str, Any]] = OR_STREAM) -> Any:
    """The decorator of a route that asks the model, with what vLLM puts around its own."""
    checked = [Depends(validate_json_request)]

    def decorated(endpoint: Any) -> Any:
        post = router.post(path, dependencies=checked, responses=responses, response_model=None)
        return post(with_cancellation(load_aware_call(endpoint)))

    return decorated


@generates(CHAT)
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """Chat completion, with an optional decoding method."""
    with preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        return _primed(await answer_chat(request, raw_request))


@generates(COMPLETIONS)
async def create_completion(request: CompletionsRequest, raw_request: Request) -> Response:
    """Text completion, with an optional decoding method."""
    with preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        return _primed(await answer_completion(request, raw_request))


@generates(RESPONSES)
async def create_response(request: GuidedResponsesRequest, raw_request: Request) -> Response:
    """OpenAI's response, with an optional decoding method."""
    with preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        return _primed(await answer_responses(request, raw_request))


@generates(MESSAGES)
async def create_message(request: MessagesRequest, raw_request: Request) -> Response:
    """Anthropic's message, with an optional decoding method."""
    with preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        return _primed(await answer_message(request, raw_request))


@generates(COUNT_TOKENS, ERRORS)
async def count_message_tokens(request: CountRequest, raw_request: Request) -> Response:
    """How many tokens the input of a message takes; ``decoding`` does not change that."""
    return await answer_count(request, raw_request)


@generates(CHAT_BATCH, ERRORS)
async def create_chat_completion_batch(request: BatchRequest, raw_request: Request) -> Response:
    """One chat completion for each of several conversations, with an optional decoding method."""
    with preset_named(request, raw_request):
        request = await _admitted(request, raw_request)
        answer: Response = await answer_batch(request, raw_request)
        return answer


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
    """The presets by name: what ``MODEL@NAME`` stands for, and what may be changed in them."""
    presets = raw_request.app.state.presets
    data = [{"preset": name, "decoding": value} for name, value in presets.items()]
    return {"object": "list", "data": data, "parameters": PresetRef.model_json_schema()}


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
    app.include_router(score.router)
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
