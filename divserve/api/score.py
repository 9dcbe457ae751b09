"""The routes of scores: ``POST /v1/decoding/score`` and ``GET /v1/decoding/scores``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from divserve.api.guided import LONGEST_NAME
from divserve.api.record import RECORD
from divserve.api.score_answer import item, usage
from divserve.api.score_body import ScoreRequest
from divserve.api.score_texts import Asked, asked_of
from divserve.engine.client.read import Found, check_engine, read
from divserve.errors import InvalidRequest
from divserve.http.errors import ErrorBody
from divserve.http.openai import load_aware_call, validate_json_request, with_cancellation
from divserve.http.paths import SCORE
from divserve.http.scope import weigh
from divserve.scores import SCORES, Scoring

__all__ = ["router"]

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 429, 500, 503)
}

router = APIRouter()


@router.get("/v1/decoding/scores")
async def list_scores(raw_request: Request) -> dict[str, Any]:
    """The scores of given texts: formula, direction, needs, and what each is worth."""
    state = raw_request.app.state
    return {"object": "list", "data": state.scoring.listed(state.extras)}


@router.post(
    SCORE, dependencies=[Depends(validate_json_request)], responses=RESPONSES, response_model=None
)
@with_cancellation
@load_aware_call
async def score(request: ScoreRequest, raw_request: Request) -> Response:
    """Scores of a given text, or of answers behind a prompt: nothing is generated."""
    state = raw_request.app.state
    names = _names(request, state.scoring, state.extras)
    check_engine(state.engine_client.vllm_config)
    request.check_limits(state.edges)
    weigh(raw_request.scope, request.rows)
    asked = await asked_of(request, raw_request)
    _check_trace(request, asked, state.edges.max_trace_tokens)
    found = await _read_all(state.engine_client, asked)
    record = raw_request.scope[RECORD]
    record.model = request.model and request.model[:LONGEST_NAME]
    record.prompt_tokens = {place: one.sought.tokens for place, one in enumerate(asked)}
    return JSONResponse(await asyncio.to_thread(_answer, request, names, asked, found, state))


def _answer(
    request: ScoreRequest,
    names: Sequence[str],
    asked: Sequence[Asked],
    found: Sequence[tuple[Found, Found | None]],
    state: Any,
) -> dict[str, Any]:
    serving = state.openai_serving_completion
    decode = serving._decode(False)
    data = [
        item(index, request, names, state.scoring, one, *pair, decode)
        for index, (one, pair) in enumerate(zip(asked, found, strict=True))
    ]
    model = request.model or serving.models.model_name()
    return {"object": "list", "model": model, "data": data, "usage": usage(asked, found)}


def _names(request: ScoreRequest, scoring: Scoring, extras: frozenset[str]) -> list[str]:
    """The scores to compute.

    Raises:
        InvalidRequest: a name is unknown, or something that a score needs is missing.
    """
    if request.scores is None:
        return [*scoring.defaults(request.is_compared)]
    for place, name in enumerate(request.scores):
        param = f"scores.{place}"
        if (known := SCORES.get(name)) is None:
            raise InvalidRequest(
                f"There is no score {name[:64]!r}; the scores are {', '.join(SCORES)}.", param=param
            )
        if flags := scoring.lacking(known, extras):
            raise InvalidRequest(
                f"{name} is not offered: this server runs without {' and '.join(flags)}.",
                param=param,
                code="score_unavailable",
            )
        if "guide" in known.needs and not request.is_compared:
            raise InvalidRequest(f"{name} compares with a 'guide': give one.", param="guide")
    return list(dict.fromkeys(request.scores))


def _check_trace(request: ScoreRequest, asked: Sequence[Asked], most: int) -> None:
    tokens = sum(len(one.sought.text) for one in asked)
    if request.traced and tokens > most:
        raise InvalidRequest(
            f"A trace of {tokens} tokens is too long: send fewer or shorter texts, leave the trace "
            f"out, or start the server with a larger --max-trace-tokens (now {most}).",
            param="tokens",
        )


async def _read_all(client: Any, asked: Sequence[Asked]) -> list[tuple[Found, Found | None]]:
    """Has all texts read together; the first error ends the others."""
    name = f"score-{uuid4().hex}"
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                (
                    group.create_task(read(client, one.sought, f"{name}-{i}")),
                    one.lower and group.create_task(read(client, one.lower, f"{name}-{i}-lower")),
                )
                for i, one in enumerate(asked)
            ]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [(first.result(), second.result() if second else None) for first, second in tasks]
