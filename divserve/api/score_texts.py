"""What a score request asks the engine to read: token ids before each text, and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from divserve.api import extras, guide_models
from divserve.api.guided import Guided
from divserve.api.requests import ChatRequest, CompletionsRequest
from divserve.api.score_body import TEXT_FIELDS, ScoreRequest
from divserve.decoding import Program, Reading, Spec
from divserve.engine.client.read import Sought
from divserve.errors import InvalidRequest, NotFound
from divserve.http.openai import ErrorResponse, VLLMValidationError
from divserve.scores import SCORES

__all__ = ["Asked", "asked_of"]

NOT_FOUND = 404


@dataclass(frozen=True)
class Asked:
    """One text of a request."""

    sought: Sought
    content: str
    """The text itself."""
    lower: Sought | None = None
    """The same in lower case, for the plain model."""


async def asked_of(body: ScoreRequest, raw_request: Request) -> list[Asked]:
    """Renders and tokenizes what the request asks for.

    Raises:
        InvalidRequest: it cannot be rendered, is empty or too long, or names what is not there.
    """
    try:
        return await _asked_of(body, raw_request)
    except InvalidRequest as error:
        error.param = _own_path(error.param, body)
        raise


async def _asked_of(body: ScoreRequest, raw_request: Request) -> list[Asked]:
    twin = _twin(body)
    extras.place(twin, raw_request)
    guide_models.resolve(twin, raw_request)
    state = raw_request.app.state
    serving = _serving(state, body)
    rendered = [ids["prompt_token_ids"] for ids in await _rendered(serving, twin, body)]
    if twin.reason is not None:
        raise InvalidRequest(
            f"{twin.reason} There is nothing to compare with.", param="decoding.guide"
        )
    spec = twin.spec_of(0) if twin.decoding is not None else Spec(Program())
    tokenizer = serving.renderer.tokenizer
    if tokenizer is None:
        raise InvalidRequest("Scores need the server's tokenizer.", param=body.scored_field)
    if body.input is not None:
        pairs = [(ids[:1], ids[1:]) for ids in rendered]
    else:
        pairs = [(rendered[0], _ids_of(text, serving)) for text in body.texts]
    limit = serving.engine_client.capacity.max_guide_tokens
    found = []
    for number, (prompt, text) in enumerate(pairs):
        _check_length(prompt, text, limit, _path(body, number))
        _check_ids(prompt, serving, _prompt_field(body))
        _check_ids(text, serving, _path(body, number))
        sought = Sought(prompt, text, spec, _reading(body, text))
        content = body.texts[number]
        if not isinstance(content, str):
            content = tokenizer.decode(text if body.input is None else prompt + text)
        found.append(Asked(sought, content))
    if "lowercase" in (body.scores or ()):
        found = [await _with_lower(one, body, serving, limit) for one in found]
    return found


def _twin(body: ScoreRequest) -> Guided:
    """A generation request with the same prompt, guide and method, which is only rendered."""
    decoding: Any = body.method
    if decoding is None and body.guide is not None:
        decoding = {"method": "cad", "alpha": 0, "guide": body.guide}
    fields = {"model": body.model, "decoding": decoding}
    try:
        if body.messages is not None:
            return ChatRequest(
                messages=body.messages,
                documents=body.documents,
                tools=body.tools,
                chat_template_kwargs=body.chat_template_kwargs,
                max_completion_tokens=1,
                **fields,
            )
        prompt = body.input if body.input is not None else body.prompt
        return CompletionsRequest(
            prompt=prompt, add_special_tokens=body.add_special_tokens, max_tokens=1, **fields
        )
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _serving(state: Any, body: ScoreRequest) -> Any:
    chat = body.messages is not None
    return state.openai_serving_chat if chat else state.openai_serving_completion


async def _rendered(serving: Any, twin: Guided, body: ScoreRequest) -> Sequence[Any]:
    """vLLM's rendering of the prompt, or of the whole texts."""
    chat, field = body.messages is not None, _prompt_field(body)
    render = serving.render_chat_request if chat else serving.render_completion_request
    try:
        found = await render(twin)
    except VLLMValidationError as error:
        long = error.parameter in ("input_tokens", "input_text")
        code = "context_length_exceeded" if long else None
        raise InvalidRequest(str(error.args[0]), param=field, code=code) from None
    if isinstance(found, ErrorResponse):
        kind = NotFound if found.error.code == NOT_FOUND else InvalidRequest
        raise kind(found.error.message, param=found.error.param or field)
    inputs: Sequence[Any] = found[1] if chat else found
    return inputs


def _prompt_field(body: ScoreRequest) -> str:
    return next(name for name in TEXT_FIELDS if getattr(body, name) is not None)


def _ids_of(text: str | list[int], serving: Any) -> list[int]:
    """The token ids of an answer."""
    if isinstance(text, str):
        return list(serving.renderer.tokenizer.encode(text, add_special_tokens=False))
    return text


def _check_ids(token_ids: list[int], serving: Any, param: str) -> None:
    """Raises `InvalidRequest` if an id is not in the vocabulary."""
    try:
        serving.renderer.validate_token_ids(token_ids)
    except VLLMValidationError as error:
        raise InvalidRequest(str(error.args[0]), param=param) from None


def _reading(body: ScoreRequest, text: list[int]) -> Reading:
    ids = body.logprob_token_ids or []
    if ids and len(ids) != len(text):
        raise InvalidRequest(
            f"logprob_token_ids has {len(ids)} lists; {len(text)} tokens are scored: send one list "
            "for each, empty where nothing is asked for.",
            param="logprob_token_ids",
        )
    needs = {need for name in body.scores or () for need in SCORES[name].needs}
    return Reading(
        len(text), body.top_logprobs, ids, body.method is not None, reference="amateur" in needs
    )


def _check_length(prompt: list[int], text: list[int], limit: int, param: str) -> None:
    if not text:
        raise InvalidRequest("The text has no token to score.", param=param)
    if (length := len(prompt) + len(text)) > limit:
        raise InvalidRequest(
            f"The text and what stands before it have {length} tokens; at most {limit} fit.",
            param=param,
            code="context_length_exceeded",
        )


def _path(body: ScoreRequest, number: int) -> str:
    return f"{body.scored_field}.{number}" if len(body.texts) > 1 else body.scored_field


async def _with_lower(asked: Asked, body: ScoreRequest, serving: Any, limit: int) -> Asked:
    """The same with its lower-case version."""
    if not isinstance(body.texts[0], str):
        raise InvalidRequest("lowercase needs texts, not token ids.", param="scores")
    text = asked.content.lower()
    if body.input is not None:
        ids = serving.renderer.tokenizer.encode(text, add_special_tokens=body.add_special_tokens)
        prompt, scored = list(ids[:1]), list(ids[1:])
    else:
        prompt, scored = asked.sought.prompt, _ids_of(text, serving)
    _check_length(prompt, scored, limit, body.scored_field)
    plain = Sought(prompt, scored, Spec(Program()), Reading(len(scored)))
    return replace(asked, lower=plain)


def _own_path(param: str | None, body: ScoreRequest) -> str | None:
    """A path in the twin's body as one in the request's."""
    if param is None or not param.startswith("decoding"):
        return "input" if param == "prompt" and body.input is not None else param
    rest = param.removeprefix("decoding")
    _, found, after = rest.partition(".guide")
    if found and body.guide is not None:
        return f"guide{after}"
    return f"method{rest}"
